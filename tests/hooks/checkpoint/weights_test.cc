// Loading: layout, dtypes, tying, and the refusal of every tensor that is missing, extra, misshapen
// or not finite.
#include "hooks/checkpoint/weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hooks/checkpoint/processing.h"
#include "tests/golden_cases.h"
#include "tests/hooks/checkpoint/tiny_gpt2.h"

namespace lenscpp {
namespace {

const std::filesystem::path kGolden =
    std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2";

Weights load(const TinyGpt2& model, DType dtype = DType::f32) {
  Scratch scratch;
  model.write(scratch.path());
  return load_weights(scratch.path(), dtype);  // the mapping outlives the folder
}

void expect_load_refused(const TinyGpt2& model, std::initializer_list<std::string> parts,
                         DType dtype = DType::f32) {
  Scratch scratch;
  model.write(scratch.path());
  expect_refused([&] { load_weights(scratch.path(), dtype); }, parts);
}

// ---- what is loaded ----

TEST(LoadWeights, EveryArrayIsTheTensorOfTheFile) {
  TinyGpt2 model;
  Weights weights = load(model);
  std::map<std::string, std::string> ours{{"embed.W_E", "wte.weight"},
                                          {"pos_embed.W_pos", "wpe.weight"},
                                          {"blocks.1.ln1.w", "h.1.ln_1.weight"},
                                          {"blocks.1.ln1.b", "h.1.ln_1.bias"},
                                          {"blocks.1.attn.W_QKV", "h.1.attn.c_attn.weight"},
                                          {"blocks.1.attn.b_QKV", "h.1.attn.c_attn.bias"},
                                          {"blocks.1.attn.W_O", "h.1.attn.c_proj.weight"},
                                          {"blocks.1.attn.b_O", "h.1.attn.c_proj.bias"},
                                          {"blocks.1.ln2.w", "h.1.ln_2.weight"},
                                          {"blocks.1.ln2.b", "h.1.ln_2.bias"},
                                          {"blocks.1.mlp.W_in", "h.1.mlp.c_fc.weight"},
                                          {"blocks.1.mlp.b_in", "h.1.mlp.c_fc.bias"},
                                          {"blocks.1.mlp.W_out", "h.1.mlp.c_proj.weight"},
                                          {"blocks.1.mlp.b_out", "h.1.mlp.c_proj.bias"},
                                          {"ln_final.w", "ln_f.weight"},
                                          {"ln_final.b", "ln_f.bias"},
                                          {"unembed.W_U", "wte.weight"}};
  std::size_t compared = 0, visited = 0;
  weights.for_each([&](const std::string& name, const Array& array) {
    ++visited;
    EXPECT_EQ(array.dtype(), DType::f32);
    if (!ours.contains(name)) return;
    EXPECT_EQ(array.digest(), model.tensors.at("transformer." + ours.at(name)).digest()) << name;
    ++compared;
  });
  EXPECT_EQ(compared, ours.size());
  EXPECT_EQ(visited, 2u + 2u * 12u + 4u);
  for (double x : weights.b_U.to_doubles()) EXPECT_EQ(x, 0);
  EXPECT_EQ(weights.b_U.shape(), (Shape{9}));
}

TEST(LoadWeights, PointsIntoTheFileAndSharesATiedUnembedding) {
  Weights weights = load(TinyGpt2());
  EXPECT_EQ(weights.W_U.bytes(), weights.W_E.bytes());
  std::size_t separate = 0;
  weights.for_each([&](const std::string&, const Array& array) { separate += array.nbytes(); });
  EXPECT_EQ(weights.nbytes(), separate - weights.W_E.nbytes());
}

TEST(LoadWeights, ThePrefixMakesNoDifference) {
  EXPECT_EQ(load(TinyGpt2("")).digest(), load(TinyGpt2("transformer.")).digest());
}

TEST(LoadWeights, MasksAreIgnored) {
  for (std::string prefix : {"", "transformer."}) {
    TinyGpt2 model(prefix);
    std::string digest = load(model).digest();
    for (std::string h : {"h.0.", "h.1."}) {
      model.tensors[prefix + h + "attn.bias"] = Array::of(std::vector<float>(16, 1), {1, 1, 4, 4});
      model.tensors[prefix + h + "attn.masked_bias"] = Array::of(std::vector<float>{-1e4f}, {});
    }
    EXPECT_EQ(load(model).digest(), digest);
  }
}

TEST(LoadWeights, MatricesAreViewsOfTheirColumns) {
  Weights weights = load(TinyGpt2());
  for (auto [matrix, first] :
       {std::pair(weights.W_Q(1), 0), {weights.W_K(1), 6}, {weights.W_V(1), 12}}) {
    EXPECT_EQ(matrix.storage.bytes(), weights.layers[1].W_QKV.bytes());
    EXPECT_EQ(matrix.in, 6);
    EXPECT_EQ(matrix.out, 6);
    EXPECT_EQ(matrix.first_output, first);
    EXPECT_FALSE(matrix.outputs_are_rows);
  }
  EXPECT_EQ(weights.b_Q(0).first, 0);
  EXPECT_EQ(weights.b_K(0).first, 6);
  EXPECT_EQ(weights.b_V(0).first, 12);
  EXPECT_EQ(weights.b_V(0).size, 6);
  EXPECT_EQ(weights.W_in(0).out, 10);
  EXPECT_EQ(weights.W_out(0).in, 10);
  EXPECT_EQ(weights.W_O(0).in, 6);
  EXPECT_TRUE(weights.unembedding().outputs_are_rows);
  EXPECT_EQ(weights.unembedding().out, 9);
  EXPECT_EQ(weights.unembedding().in, 6);
}

TEST(LoadWeights, ALayerThatIsNotThereIsRefused) {
  Weights weights = load(TinyGpt2());
  for (std::int64_t layer : {-1, 2, 1000})
    expect_refused<std::out_of_range>([&] { weights.W_Q(layer); },
                                      {std::to_string(layer), "2 layers", "0..1"});
}

TEST(LoadWeights, EveryStoredDtypeIsRoundedOnceToTheRequestedOne) {
  for (DType stored : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
      TinyGpt2 model("", stored);
      Weights weights = load(model, dtype);
      EXPECT_EQ(weights.dtype, dtype);
      EXPECT_EQ(weights.config.stored_dtype, stored);
      const Array& from = model.tensors.at("h.0.mlp.c_fc.weight");
      const Array& to = weights.layers[0].W_in;
      ASSERT_EQ(to.dtype(), dtype);
      for (std::int64_t i = 0; i < from.numel(); ++i) ASSERT_EQ(to[i], round_to(dtype, from[i]));
      weights.for_each([&](const std::string& name, const Array& array) {
        EXPECT_EQ(array.dtype(), dtype) << name;
      });
    }
}

TEST(LoadWeights, MixedFilesAreReadAndTheWidestTypeReported) {
  TinyGpt2 model("", DType::f16);
  model.tensors["ln_f.weight"] = model.tensors["ln_f.weight"].to(DType::bf16);
  EXPECT_EQ(load(model).config.stored_dtype, DType::f32);  // holds both exactly
  model.tensors["ln_f.weight"] = model.tensors["ln_f.weight"].to(DType::f64);
  EXPECT_EQ(load(model).config.stored_dtype, DType::f64);
}

TEST(LoadWeights, AnUntiedUnembeddingIsItsOwnTensor) {
  TinyGpt2 model;
  model.config["tie_word_embeddings"] = false;
  model.tensors["lm_head.weight"] = changed(model.tensors["transformer.wte.weight"], 0, 42);
  Weights weights = load(model);
  EXPECT_EQ(weights.W_U[0], 42);
  EXPECT_NE(weights.W_E[0], 42);
}

TEST(LoadWeights, ATiedUnembeddingMayBeStoredWhenItIsTheSame) {
  TinyGpt2 model;
  std::string digest = load(model).digest();
  model.tensors["lm_head.weight"] = model.tensors["transformer.wte.weight"];
  EXPECT_EQ(load(model).digest(), digest);
}

TEST(LoadWeights, EveryGoldenCaseLoadsInEveryDtype) {
  std::size_t loaded = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden))
    if (entry.is_directory())
      for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
        Weights weights = load_weights(entry.path(), dtype);
        EXPECT_EQ(static_cast<std::int64_t>(weights.layers.size()), weights.config.n_layers);
        EXPECT_EQ(weights.W_U.bytes() == weights.W_E.bytes(), weights.config.tied_unembedding)
            << entry.path();
        ++loaded;
      }
  EXPECT_GE(loaded, 4u * 8u);
}

TEST(LoadWeights, ShardsAndOneFileGiveTheSameDigest) {
  Scratch scratch;
  std::map<std::string, Array> all;
  Checkpoint sharded = Checkpoint::open(kGolden / "sharded");
  for (const std::string& name : sharded.names()) all[name] = sharded.tensor(name);
  write_safetensors(scratch / "model.safetensors", all);
  std::filesystem::copy(kGolden / "sharded/config.json", scratch / "config.json");
  EXPECT_EQ(load_weights(scratch.path(), DType::f32).digest(),
            load_weights(kGolden / "sharded", DType::f32).digest());
}

// BERT's masked language model with two biases of its vocabulary, each stored where it is given.
struct TwoBiases {
  bool tied;
  std::optional<double> own, decoder;  // of every token

  void write(const std::filesystem::path& folder) const {
    const auto golden = golden::encoder_folder("bert_untied_masked_lm");
    auto config = nlohmann::json::parse(std::ifstream(golden / "config.json"));
    config["tie_word_embeddings"] = tied;
    write_file(folder / "config.json", config.dump());
    std::map<std::string, Array> tensors;
    Checkpoint stored = Checkpoint::open(golden);
    for (const std::string& name : stored.names()) tensors[name] = stored.tensor(name);
    if (tied) tensors.erase("cls.predictions.decoder.weight");
    put(tensors, "cls.predictions.bias", own);
    put(tensors, "cls.predictions.decoder.bias", decoder);
    write_safetensors(folder / "model.safetensors", tensors);
  }

 private:
  static void put(std::map<std::string, Array>& tensors, const std::string& name,
                  std::optional<double> value) {
    if (!value) {
      tensors.erase(name);
      return;
    }
    MutableArray bias(tensors.at(name).shape(), DType::f16);
    for (std::int64_t i = 0; i < bias.numel(); ++i) bias.set(i, *value);
    tensors[name] = std::move(bias).freeze();
  }
};

TEST(LoadWeights, TheBiasOfBertsMaskedTokensIsTheDecoders) {
  for (const auto& [biases, expected] : std::vector<std::pair<TwoBiases, double>>{
           {{.tied = false, .own = 2, .decoder = 3}, 3},
           {{.tied = false, .own = {}, .decoder = 3}, 3},
           {{.tied = false, .own = 2, .decoder = {}}, 2},  // of files in which they are one tensor
           {{.tied = true, .own = 2, .decoder = 2}, 2},
           {{.tied = true, .own = {}, .decoder = 3}, 3},
           {{.tied = true, .own = 2, .decoder = {}}, 2}}) {
    Scratch scratch;
    biases.write(scratch.path());
    EXPECT_EQ(load_weights(scratch.path(), DType::f32).b_U[0], expected) << biases.tied;
  }
}

// ---- what is refused ----

TEST(LoadWeightsRefuses, TiedBiasesThatDiffer) {
  Scratch scratch;
  TwoBiases{.tied = true, .own = 0.0, .decoder = -0.0}.write(scratch.path());
  expect_refused([&] { load_weights(scratch.path(), DType::f32); },
                 {"\"cls.predictions.decoder.bias\"", "differs", "\"cls.predictions.bias\"",
                  "tie_word_embeddings"});
}

TEST(LoadWeightsRefuses, EachMissingTensorByName) {
  TinyGpt2 whole;
  for (const auto& [name, array] : whole.tensors) {
    TinyGpt2 model;
    model.tensors.erase(name);
    expect_load_refused(model, {"\"" + name + "\"", "missing", "nearest"});
  }
}

TEST(LoadWeightsRefuses, AMissingTensorNamesTheNearest) {
  TinyGpt2 model;
  model.tensors["transformer.h.0.mlp.c_fc.wieght"] =
      model.tensors["transformer.h.0.mlp.c_fc.weight"];
  model.tensors.erase("transformer.h.0.mlp.c_fc.weight");
  expect_load_refused(model, {"nearest names are \"transformer.h.0.mlp.c_fc.wieght\""});
}

TEST(LoadWeightsRefuses, EachMisshapenTensorByName) {
  TinyGpt2 whole;
  for (const auto& [name, array] : whole.tensors) {
    for (int change = 0; change < 3; ++change) {
      TinyGpt2 model;
      Shape shape = array.shape();
      if (change == 0) shape[0] += 1;                                       // longer
      if (change == 1) shape.push_back(1);                                  // another rank
      if (change == 2 && shape.size() == 2) std::swap(shape[0], shape[1]);  // transposed
      if (shape == array.shape()) continue;                                 // square, or a vector
      model.tensors[name] = MutableArray(shape, DType::f32).freeze();
      expect_load_refused(model, {"\"" + name + "\"", to_string(shape), to_string(array.shape())});
    }
  }
}

TEST(LoadWeightsRefuses, ExtraTensorsByName) {
  for (std::string name :
       {"transformer.h.2.ln_1.weight", "score.weight", "transformer.h.2.attn.bias", "wte.weights",
        "transformer.h.0.attn.c_attn.gidx", "transformer.h.00.attn.bias", "lm_head.bias"}) {
    TinyGpt2 model;
    model.tensors[name] = Array::of(std::vector<float>{1}, {1});
    expect_load_refused(model, {"1 tensor", "\"" + name + "\"", "[1]"});
  }
  TinyGpt2 model;
  for (int i = 0; i < 9; ++i)
    model.tensors["extra" + std::to_string(i)] = Array::of(std::vector<float>{1}, {1});
  expect_load_refused(model, {"9 tensors", "\"extra0\"", "..."});
}

TEST(LoadWeightsRefuses, NamesWithAndWithoutPrefixInOneFile) {
  TinyGpt2 model;
  model.tensors["wte.weight"] = model.tensors["transformer.wte.weight"];
  expect_load_refused(model, {"\"wpe.weight\"", "missing", "\"transformer.wpe.weight\""});
  TinyGpt2 other("");
  other.tensors["transformer.wpe.weight"] = other.tensors["wpe.weight"];
  expect_load_refused(other, {"\"transformer.wpe.weight\"", "no place"});
}

TEST(LoadWeightsRefuses, FewerLayersInConfigThanInTheFile) {
  TinyGpt2 model;
  model.config["n_layer"] = 1;
  expect_load_refused(model, {"12 tensors", "transformer.h.1."});
  model.config["n_layer"] = 3;
  expect_load_refused(model, {"\"transformer.h.2.ln_1.weight\"", "missing"});
}

TEST(LoadWeightsRefuses, AnUntiedModelWithoutLmHead) {
  TinyGpt2 model;
  model.config["tie_word_embeddings"] = false;
  expect_load_refused(model, {"\"lm_head.weight\"", "missing"});
}

TEST(LoadWeightsRefuses, ATiedLmHeadThatDiffersInOneBit) {
  TinyGpt2 model;
  const Array& embedding = model.tensors["transformer.wte.weight"];
  model.tensors["lm_head.weight"] =
      changed(embedding, 53, std::nextafter(static_cast<float>(embedding[53]), 10.0f));
  expect_load_refused(model, {"\"lm_head.weight\"", "differs", "\"transformer.wte.weight\"",
                              "tie_word_embeddings"});
  // A zero of the other sign is another bit pattern.
  model.tensors["transformer.wte.weight"] = changed(embedding, 0, 0.0);
  model.tensors["lm_head.weight"] = changed(embedding, 0, -0.0);
  expect_load_refused(model, {"\"lm_head.weight\"", "differs"});
}

TEST(LoadWeightsRefuses, NaNAndInfinityInEachTensorByNameAndPlace) {
  TinyGpt2 whole;
  const double inf = std::numeric_limits<double>::infinity();
  for (const auto& [name, array] : whole.tensors)
    for (double value : {std::nan(""), inf, -inf}) {
      TinyGpt2 model;
      std::int64_t last = array.numel() - 1;
      model.tensors[name] = changed(array, last, value);
      Shape place = array.shape();
      for (auto& extent : place) --extent;
      expect_load_refused(model, {"\"" + name + "\"",
                                  std::isnan(value) ? "NaN"
                                  : value > 0       ? "+inf"
                                                    : "-inf",
                                  to_string(place)});
    }
}

TEST(LoadWeightsRefuses, NaNInEveryStoredDtype) {
  for (DType stored : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    TinyGpt2 model("", stored);
    model.tensors["wte.weight"] = changed(model.tensors["wte.weight"], 7, std::nan(""));
    expect_load_refused(model, {"\"wte.weight\"", "NaN", "[1, 1]"});
  }
}

TEST(LoadWeightsRefuses, WeightsThatOverflowTheRequestedDtype) {
  TinyGpt2 model;
  model.tensors["transformer.ln_f.bias"] =
      changed(model.tensors["transformer.ln_f.bias"], 2, 70000);
  EXPECT_NO_THROW(load(model, DType::bf16));
  expect_load_refused(model, {"\"transformer.ln_f.bias\"", "float16", "65504", "[2]"}, DType::f16);
  TinyGpt2 wide("", DType::f64);
  wide.tensors["ln_f.bias"] = changed(wide.tensors["ln_f.bias"], 0, -1e200);
  expect_load_refused(wide, {"\"ln_f.bias\"", "-inf", "wider"}, DType::f32);
}

TEST(LoadWeightsRefuses, IntegersAsWeightsAndAsTheRequestedDtype) {
  TinyGpt2 model;
  model.tensors["transformer.ln_f.bias"] = Array::of(std::vector<std::int64_t>(6), {6});
  expect_load_refused(model, {"\"transformer.ln_f.bias\"", "I64", "F64 F32 F16 BF16"});
  expect_load_refused(TinyGpt2(), {"int64", "allowed"}, DType::i64);
  expect_refused([] { cast(load(TinyGpt2()), DType::i64); }, {"int64", "allowed"});
}

TEST(LoadWeightsRefuses, AnEmptyCheckpoint) {
  TinyGpt2 model;
  model.tensors.clear();
  expect_load_refused(model, {"\"transformer.wte.weight\"", "there are no tensors"});
}

// ---- digest and cast ----

TEST(WeightsDigest, ChangesWithEveryArrayTheConfigAndTheDtype) {
  TinyGpt2 whole;
  std::string digest = load(whole).digest();
  EXPECT_EQ(digest, load(TinyGpt2()).digest());
  for (const auto& [name, array] : whole.tensors) {
    TinyGpt2 model;
    model.tensors[name] = changed(array, 0, 3.25);
    EXPECT_NE(load(model).digest(), digest) << name;
  }
  TinyGpt2 model;
  model.config["layer_norm_epsilon"] = 1e-6;
  EXPECT_NE(load(model).digest(), digest);
  EXPECT_NE(load(whole, DType::f64).digest(), digest);
}

TEST(Cast, RoundsEveryArrayAndGoesOnSharing) {
  Weights weights = load(TinyGpt2(), DType::f64);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Weights narrow = cast(weights, dtype);
    EXPECT_EQ(narrow.dtype, dtype);
    EXPECT_EQ(narrow.W_E.bytes(), narrow.W_U.bytes());
    EXPECT_EQ(narrow.digest(), load(TinyGpt2(), dtype).digest());
  }
  Weights same = cast(weights, DType::f64);
  EXPECT_EQ(same.W_E.bytes(), weights.W_E.bytes());
  Weights folded = cast(process(weights, {}), DType::f32);
  EXPECT_EQ(folded.ln_final_w.rank(), 0);
}

TEST(Cast, RefusesWhatOverflowsByName) {
  TinyGpt2 model;
  model.tensors["transformer.h.1.mlp.c_proj.bias"] =
      changed(model.tensors["transformer.h.1.mlp.c_proj.bias"], 4, 1e6);
  Weights weights = load(model);
  expect_refused([&] { cast(weights, DType::f16); },
                 {"blocks.1.mlp.b_out", "+inf", "[4]", "float16"});
}

}  // namespace
}  // namespace lenscpp
