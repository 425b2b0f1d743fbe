// Adapters: what is refused, by name; names matched as peft matches them; numbers by hand.
#include "hooks/checkpoint/adapters.h"

#include <cmath>

#include "hooks/checkpoint/loading.h"
#include "tests/golden_cases.h"
#include "tests/hooks/checkpoint/tiny_gpt2.h"

namespace lenscpp {
namespace {

using nlohmann::json;

constexpr const char* kQkv = "base_model.model.transformer.h.1.attn.c_attn";

// A LoRA of rank 2 on one matrix of TinyGpt2, to be spoilt.
struct TinyLora {
  json config = {{"peft_type", "LORA"},
                 {"r", 2},
                 {"lora_alpha", 6},
                 {"fan_in_fan_out", true},
                 {"target_modules", {"c_attn"}},
                 {"layers_to_transform", 1}};
  std::map<std::string, Array> tensors;

  TinyLora() {
    tensors[std::string(kQkv) + ".lora_A.weight"] = filled({2, 6}, 0.5);
    tensors[std::string(kQkv) + ".lora_B.weight"] = filled({18, 2}, -0.25);
  }
  static Array filled(const Shape& shape, double step) {
    std::vector<double> values(static_cast<std::size_t>(numel(shape)));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = step * static_cast<double>(i % 5);
    return Array::of(values, shape).to(DType::f32);
  }
  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    write_file(folder / "adapter_config.json", config.dump());
    write_safetensors(folder / "adapter_model.safetensors", tensors);
  }
};

class Adapters : public testing::Test {
 protected:
  Adapters() { model.write(scratch.path()); }
  Weights load() {
    lora.write(scratch / "lora");
    Adapter adapter = Adapter::open(scratch / "lora");
    return load_weights(scratch.path(), Loading{.dtype = DType::f64, .adapter = &adapter});
  }
  void refused(std::initializer_list<std::string> parts) {
    expect_refused([&] { load(); }, parts);
  }
  Scratch scratch;
  TinyGpt2 model;
  TinyLora lora;
};

TEST_F(Adapters, AddTheirProductTimesAlphaOverRankToTheLayerThatTheyName) {
  Weights base = load_weights(scratch.path(), DType::f64), merged = load();
  Array A = lora.tensors.begin()->second, B = lora.tensors.rbegin()->second;
  EXPECT_EQ(merged.layers[0].W_QKV.digest(), base.layers[0].W_QKV.digest());
  for (std::int64_t in = 0; in < 6; ++in)
    for (std::int64_t out = 0; out < 18; ++out) {
      double delta = 6.0 / 2 * (B[out * 2] * A[in] + B[out * 2 + 1] * A[6 + in]);
      std::int64_t at = in * 18 + out;
      EXPECT_NEAR(merged.layers[1].W_QKV[at], base.layers[1].W_QKV[at] + delta, 1e-14);
    }
  EXPECT_NE(merged.digest(), base.digest());
}

TEST_F(Adapters, AreRoundedOnceToTheDtype) {
  Array wide = load().layers[1].W_QKV;
  Adapter adapter = Adapter::open(scratch / "lora");
  Weights half = load_weights(scratch.path(), Loading{.dtype = DType::bf16, .adapter = &adapter});
  EXPECT_EQ(half.layers[1].W_QKV.digest(), wide.to(DType::bf16).digest());
}

// A trunk saved by itself has bare names; so has an adapter that was trained on one.
TEST_F(Adapters, FindTheirModulesWithAndWithoutTheTrunksPrefix) {
  std::string whole = load().digest();
  Scratch bare;
  TinyGpt2("").write(bare.path());
  Adapter adapter = Adapter::open(scratch / "lora");
  EXPECT_EQ(load_weights(bare.path(), Loading{.dtype = DType::f64, .adapter = &adapter}).digest(),
            whole);
  TinyLora of_trunk;
  of_trunk.tensors.clear();
  for (const auto& [name, array] : lora.tensors)
    of_trunk.tensors["base_model.model." + name.substr(name.find("h.1."))] = array;
  of_trunk.config["target_modules"] = {"h.1.attn.c_attn"};
  lora = of_trunk;
  EXPECT_EQ(load().digest(), whole);
}

TEST_F(Adapters, OfAnotherModelAreRefused) {
  auto name = std::string(kQkv) + ".lora_A.weight";
  lora.tensors[name] = TinyLora::filled({2, 7}, 1);
  refused({"lora_A.weight", "[2, 7]", "needs [2, 6]", "another model"});
  lora = TinyLora();
  lora.tensors[std::string(kQkv) + ".lora_B.weight"] = TinyLora::filled({6, 2}, 1);
  refused({"lora_B.weight", "[6, 2]", "needs [18, 2]"});
  lora = TinyLora();
  lora.tensors["base_model.model.model.layers.0.self_attn.c_attn.lora_A.weight"] =
      TinyLora::filled({2, 6}, 1);
  lora.config.erase("layers_to_transform");
  refused({"model.layers.0.self_attn.c_attn", "has not", "nearest"});
  lora = TinyLora();
  lora.config["fan_in_fan_out"] = false;
  refused({"fan_in_fan_out is false", "[in, out]", "another model"});
}

TEST_F(Adapters, WhoseTargetsAreNotInTheModelAreRefused) {
  lora.config["target_modules"] = {"c_attn", "q_proj"};
  refused({"target_modules", "\"q_proj\"", "has not"});
  lora.config["target_modules"] = {"c_attn", "mlp.c_fc"};
  refused({"h.1.mlp.c_fc", "holds none"});
  lora.config["target_modules"] = "transformer\\.h\\.0\\..*c_attn";
  refused({"puts no LoRA on", "h.1.attn.c_attn"});
}

TEST_F(Adapters, WithTensorsLeftOverOrMissingAreRefused) {
  lora.tensors["base_model.model.transformer.ln_f.weight"] = TinyLora::filled({6}, 1);
  refused({"ln_f.weight", "left over", "modules_to_save"});
  lora = TinyLora();
  lora.tensors["base_model.model.transformer.h.1.attn.c_attn.bias"] = TinyLora::filled({18}, 1);
  refused({"c_attn.bias", "left over"});
  lora = TinyLora();
  lora.tensors.erase(std::string(kQkv) + ".lora_B.weight");
  refused({"lora_B.weight", "is missing"});
  lora = TinyLora();
  lora.config["modules_to_save"] = {"ln_f"};
  refused({"modules_to_save", "\"ln_f\"", "holds nothing"});
  lora = TinyLora();
  lora.config["bias"] = "lora_only";
  refused({"h.1.attn.c_attn.bias", "was trained"});
  lora = TinyLora();
  lora.config["use_dora"] = true;
  refused({"lora_magnitude_vector", "is missing"});
  lora = TinyLora();
  lora.tensors[std::string(kQkv) + ".lora_magnitude_vector"] = TinyLora::filled({18}, 1);
  refused({"lora_magnitude_vector", "use_dora is false"});
}

TEST_F(Adapters, WhoseRankIsAnotherThanTheConfigSaysAreRefused) {
  lora.config["rank_pattern"] = {{"c_attn", 3}};
  refused({"lora_A.weight", "[2, 6]", "rank 3"});
  lora.config["rank_pattern"] = {{"attn", 3}};  // c_attn is no module called attn
  EXPECT_NO_THROW(load());
}

TEST_F(Adapters, OnWhatIsTiedAreRefused) {
  lora.config["modules_to_save"] = {"wte"};
  lora.tensors["base_model.model.transformer.wte.weight"] = TinyLora::filled({9, 6}, 1);
  refused({"wte.weight", "ties", "tie_word_embeddings"});
  lora = TinyLora();
  lora.config["target_modules"] = {"c_attn", "wte"};
  lora.tensors["base_model.model.transformer.wte.lora_embedding_A"] = TinyLora::filled({2, 9}, 1);
  refused({"lora_embedding_A", "of embeddings none"});
}

TEST_F(Adapters, WithANaNAreRefused) {
  Array& B = lora.tensors[std::string(kQkv) + ".lora_B.weight"];
  B = changed(B, 3, NAN);
  refused({"lora_B.weight", "a NaN"});
  lora = TinyLora();
  lora.config["lora_alpha"] = 1e39;
  lora.write(scratch / "lora");
  Adapter adapter = Adapter::open(scratch / "lora");
  expect_refused(
      [&] { load_weights(scratch.path(), Loading{.dtype = DType::f32, .adapter = &adapter}); },
      {"c_attn.weight", "float32", "inf"});
}

TEST_F(Adapters, ThatThePassDoesNotReadAreRefused) {
  model.tensors["transformer.h.1.attn.masked_bias"] = TinyLora::filled({1}, 1);
  model.write(scratch.path());
  lora.config["modules_to_save"] = {"attn"};
  lora.config["target_modules"] = {"c_fc"};
  lora.tensors = {
      {"base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight", TinyLora::filled({2, 6}, 1)},
      {"base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight", TinyLora::filled({10, 2}, 1)},
      {"base_model.model.transformer.h.1.attn.masked_bias", TinyLora::filled({1}, 2)}};
  refused({"masked_bias", "does not read"});
}

TEST_F(Adapters, ThatArePickledAreRefusedWithTheLineThatConvertsThem) {
  lora.write(scratch / "lora");
  std::filesystem::remove(scratch / "lora" / "adapter_model.safetensors");
  write_file(scratch / "lora" / "adapter_model.bin", "pickle");
  expect_refused([&] { Adapter::open(scratch / "lora"); },
                 {"adapter_model.bin", "python -c", "save_file", "weights_only=True"});
  std::filesystem::remove(scratch / "lora" / "adapter_model.bin");
  expect_refused<std::system_error>([&] { Adapter::open(scratch / "lora"); },
                                    {"adapter_model.safetensors"});
  std::filesystem::remove(scratch / "lora" / "adapter_config.json");
  expect_refused<std::system_error>([&] { Adapter::open(scratch / "lora"); },
                                    {"adapter_config.json"});
}

TEST_F(Adapters, CountWhatTheyHoldAndChangeFromHeadersAlone) {
  lora.write(scratch / "lora");
  Adapter adapter = Adapter::open(scratch / "lora");
  EXPECT_EQ(adapter.nbytes(), 4 * (12 + 36));
  EXPECT_EQ(adapter.merged_elements(), 6 * 18);
  std::string digest = adapter.digest();
  lora.config["lora_alpha"] = 7;
  lora.write(scratch / "lora");
  EXPECT_NE(Adapter::open(scratch / "lora").digest(), digest);
}

// ---- adapter_config.json ----

AdapterConfig parsed(json fields) {
  json config = {{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}, {"target_modules", {"q"}}};
  config.update(fields);
  return parse_adapter_config(config.dump(), "adapter_config.json");
}

TEST(AdapterConfigs, RefuseWhatTheyDoNotMergeByName) {
  auto refused = [](json fields, std::initializer_list<std::string> parts) {
    expect_refused([&] { parsed(fields); }, parts);
  };
  refused({{"peft_type", "IA3"}}, {"peft_type", "\"IA3\"", "LORA"});
  refused({{"peft_type", nullptr}}, {"peft_type", "absent"});
  refused({{"task_type", "SEQ_CLS"}}, {"task_type", "SEQ_CLS"});
  for (const char* init : {"pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"})
    refused({{"init_lora_weights", init}}, {"init_lora_weights", init, "own weights"});
  refused({{"layer_replication", {{0, 2}}}}, {"layer_replication"});
  refused({{"target_parameters", {"experts.up"}}}, {"target_parameters"});
  refused({{"trainable_token_indices", {1}}}, {"trainable_token_indices"});
  refused({{"lora_bias", true}}, {"lora_bias"});
  refused({{"use_qalora", true}}, {"use_qalora"});
  refused({{"bias", "some"}}, {"bias", "lora_only"});
  refused({{"r", 0}}, {"r is 0"});
  refused({{"rank_pattern", {{"q", 0}}}}, {"rank_pattern", "above 0"});
  refused({{"target_modules", "all-linear"}}, {"all-linear"});
  refused({{"target_modules", json::array()}}, {"target_modules"});
  refused({{"layers_to_transform", {-1}}}, {"layers_to_transform", "-1"});
  refused({{"a_field_of_tomorrow", 1}}, {"a_field_of_tomorrow", "may change"});
}

TEST(AdapterConfigs, RefuseExpressionsThatPythonAndCppReadDifferently) {
  for (const char* pattern : {"(?P<a>q)", "(?<=a)q", "q\\Z", "\\bq", "a(", "[[:alpha:]]", "[]q]"})
    expect_refused([&] { parsed({{"target_modules", pattern}}); }, {"target_modules", "regular"});
  expect_refused([&] { parsed({{"rank_pattern", {{"q(", 1}}}}); }, {"rank_pattern"});
  expect_refused([&] { parsed({{"target_modules", std::string(2000, 'a')}}); }, {"2000"});
}

TEST(AdapterConfigs, FieldsThatChangeNoNumberAreLetPass) {
  for (const char* init : {"gaussian", "eva", "orthogonal"})
    EXPECT_NO_THROW(parsed({{"init_lora_weights", init}}));
  EXPECT_NO_THROW(parsed({{"init_lora_weights", true},
                          {"loftq_config", json::object()},
                          {"lora_dropout", 0.1},
                          {"base_model_name_or_path", "somewhere"},
                          {"auto_mapping", {{"base_model_class", "LlamaForCausalLM"}}},
                          {"use_qalora", false},
                          {"corda_config", nullptr}}));
}

// What peft's check_target_module_exists says of these names.
TEST(AdapterConfigs, NamesAreMatchedAsPeftMatchesThem) {
  AdapterConfig listed = parsed({{"target_modules", {"q_proj", "mlp.up"}}});
  EXPECT_TRUE(listed.targets_module("model.layers.0.attn.q_proj"));
  EXPECT_TRUE(listed.targets_module("q_proj"));
  EXPECT_FALSE(listed.targets_module("model.layers.0.attn.my_q_proj"));
  EXPECT_FALSE(listed.targets_module("model.layers.0.q_proj.inner"));
  EXPECT_TRUE(listed.targets_module("model.layers.0.mlp.up"));
  EXPECT_FALSE(listed.targets_module("model.layers.0.up"));

  AdapterConfig pattern = parsed({{"target_modules", ".*\\.(q|v)_proj"}});
  EXPECT_TRUE(pattern.targets_module("a.v_proj"));
  EXPECT_FALSE(pattern.targets_module("v_proj"));
  EXPECT_FALSE(pattern.targets_module("a.v_proj.b"));

  AdapterConfig excluded = parsed({{"target_modules", {"q"}}, {"exclude_modules", {"0.q"}}});
  EXPECT_FALSE(excluded.targets_module("layers.0.q"));
  EXPECT_TRUE(excluded.targets_module("layers.1.q"));

  AdapterConfig saved = parsed({{"target_modules", {"q", "head"}}, {"modules_to_save", {"head"}}});
  EXPECT_FALSE(saved.targets_module("head"));
  EXPECT_TRUE(saved.saves("model.head.inner"));
  EXPECT_FALSE(saved.saves("my_head"));

  AdapterConfig some = parsed({{"layers_to_transform", {1, 3}}});
  EXPECT_TRUE(some.targets_module("model.layers.3.attn.q"));
  EXPECT_FALSE(some.targets_module("model.layers.2.attn.q"));
  EXPECT_TRUE(some.targets_module("model.layers.1.experts.0.q"));  // the first number counts
  EXPECT_FALSE(some.targets_module("layers.1.q"));  // nothing stands before the layers' name
  EXPECT_FALSE(some.targets_module("model.q"));
  AdapterConfig named = parsed({{"layers_to_transform", 1}, {"layers_pattern", "h"}});
  EXPECT_TRUE(named.targets_module("h.1.q"));
  EXPECT_FALSE(named.targets_module("model.layers.1.q"));
}

// get_pattern_key walks the file's order; a pattern is a name's end behind a dot.
TEST(AdapterConfigs, TheFirstPatternInTheFileThatMatchesCounts) {
  AdapterConfig config = parse_adapter_config(
      R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q"],
          "rank_pattern": {"z.*q": 5, "attn.q": 6, "q": 7}, "alpha_pattern": {"1\\.q|2\\.q": 3}})",
      "adapter_config.json");
  EXPECT_EQ(config.rank_of("layers.zq"), 5);
  EXPECT_EQ(config.rank_of("layers.attn.q"), 6);
  EXPECT_EQ(config.rank_of("layers.xattn.q"), 7);
  EXPECT_EQ(config.rank_of("layers.xq"), 4);
  EXPECT_EQ(config.alpha_of("layers.1.q"), 3);
  EXPECT_EQ(config.alpha_of("layers.2.q"), 3);
  EXPECT_EQ(config.alpha_of("layers.11.q"), 8);
}

}  // namespace
}  // namespace lenscpp
