// config.json of GPT-2 in all its spellings, and every field that is refused.
#include "hooks/checkpoint/config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {
namespace {

using nlohmann::json;

json smallest() {
  return {{"model_type", "gpt2"}, {"n_layer", 2},      {"n_head", 3},
          {"n_embd", 24},         {"vocab_size", 101}, {"n_positions", 16}};
}

Config parse(const json& document) { return parse_config(document, "config.json"); }

json with(const std::string& field, const json& value) {
  json document = smallest();
  document[field] = value;
  return document;
}

void expect_field_refused(const std::string& field, const json& value,
                          std::initializer_list<std::string> parts) {
  SCOPED_TRACE(field + " = " + value.dump());
  expect_refused([&] { parse(with(field, value)); }, parts);
  expect_refused([&] { parse(with(field, value)); }, {"[config] config.json", field});
}

TEST(Config, TheSmallestConfigHasTransformersDefaults) {
  Config config = parse(smallest());
  EXPECT_EQ(config.family, "gpt2");
  EXPECT_EQ(config.n_layers, 2);
  EXPECT_EQ(config.n_heads, 3);
  EXPECT_EQ(config.n_kv_heads, 3);
  EXPECT_EQ(config.d_model, 24);
  EXPECT_EQ(config.d_head, 8);
  EXPECT_EQ(config.d_mlp, 96);
  EXPECT_EQ(config.d_vocab, 101);
  EXPECT_EQ(config.n_ctx, 16);
  EXPECT_EQ(config.norm_eps, 1e-5);
  EXPECT_EQ(config.norm, NormKind::layer_norm);
  EXPECT_EQ(config.activation, Activation::gelu_tanh);
  EXPECT_EQ(config.positions, PositionKind::learned);
  EXPECT_EQ(config.topology, Topology::sequential);
  EXPECT_TRUE(config.scale_attn_by_sqrt_d_head);
  EXPECT_FALSE(config.scale_attn_by_inverse_layer);
  EXPECT_TRUE(config.tied_unembedding);
  EXPECT_EQ(config.stored_dtype, DType::f32);
}

TEST(Config, NullStandsForAbsent) {
  Config expected = parse(smallest());
  for (std::string field : {"n_inner", "activation_function", "layer_norm_epsilon", "torch_dtype",
                            "architectures", "quantization_config", "pruned_heads", "auto_map",
                            "tie_word_embeddings", "a_field_of_the_future"})
    EXPECT_EQ(parse(with(field, nullptr)), expected) << field;
}

TEST(Config, ReadsTheSpellingsOfTheAttributeMap) {
  json document{{"model_type", "gpt2"}, {"num_hidden_layers", 2}, {"num_attention_heads", 3},
                {"hidden_size", 24},    {"vocab_size", 101},      {"max_position_embeddings", 16}};
  EXPECT_EQ(parse(document), parse(smallest()));
  document.erase("max_position_embeddings");
  document["n_ctx"] = 16;
  EXPECT_EQ(parse(document), parse(smallest()));
}

TEST(Config, TwoSpellingsMustAgree) {
  EXPECT_EQ(parse(with("n_ctx", 16)), parse(smallest()));
  expect_field_refused("n_ctx", 8, {"n_positions", "16", "8", "agree"});
  expect_field_refused("hidden_size", 48, {"n_embd", "agree"});
  json document = with("dtype", "float16");
  document["torch_dtype"] = "float32";
  expect_refused([&] { parse(document); }, {"dtype", "torch_dtype", "agree"});
}

TEST(Config, ReadsEveryActivationByItsNamesAndRefusesOthers) {
  for (auto [name, kind] :
       std::map<std::string, Activation>{{"gelu_new", Activation::gelu_tanh},
                                         {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                         {"gelu_fast", Activation::gelu_tanh},
                                         {"gelu", Activation::gelu_erf},
                                         {"relu", Activation::relu},
                                         {"silu", Activation::silu},
                                         {"swish", Activation::silu}})
    EXPECT_EQ(parse(with("activation_function", name)).activation, kind) << name;
  for (std::string name : {"quick_gelu", "tanh", "GELU", "", "gelu_10", "relu2", "mish"})
    expect_field_refused("activation_function", name,
                         {"\"" + name + "\"", "allowed", "gelu_new", "silu"});
  expect_field_refused("activation_function", 3, {"string"});
}

TEST(Config, ReadsDtypeInBothSpellings) {
  for (auto [name, dtype] : std::map<std::string, DType>{{"float32", DType::f32},
                                                         {"float64", DType::f64},
                                                         {"bfloat16", DType::bf16},
                                                         {"float16", DType::f16}}) {
    EXPECT_EQ(parse(with("dtype", name)).stored_dtype, dtype);
    EXPECT_EQ(parse(with("torch_dtype", name)).stored_dtype, dtype);
  }
  for (json value : {json("int8"), json("float8_e4m3fn"), json("int64"), json(""), json("auto")})
    expect_field_refused("dtype", value, {"allowed", "bfloat16"});
  expect_field_refused("dtype", 32, {"string"});
}

TEST(Config, TheAttentionDivisorFollowsItsFlags) {
  EXPECT_DOUBLE_EQ(parse(smallest()).attn_divisor(1), std::sqrt(8.0));
  EXPECT_DOUBLE_EQ(parse(with("scale_attn_by_inverse_layer_idx", true)).attn_divisor(1),
                   2 * std::sqrt(8.0));
  json document = with("scale_attn_weights", false);
  EXPECT_EQ(parse(document).attn_divisor(1), 1);
  document["scale_attn_by_inverse_layer_idx"] = true;
  EXPECT_EQ(parse(document).attn_divisor(1), 2);
}

TEST(Config, AMissingOrUnknownModelTypeIsRefusedWithTheAllowed) {
  json document = smallest();
  document.erase("model_type");
  expect_refused([&] { parse(document); }, {"config.json", "model_type", "missing", "\"gpt2\""});
  for (json value : {json("lama"), json("GPT2"), json(""), json("gpt_new"), json(3), json(nullptr),
                     json({"gpt2"})})
    expect_field_refused("model_type", value, {"\"gpt2\""});
}

TEST(Config, AMissingDimensionIsRefusedWithTheNearestField) {
  for (std::string field : {"n_layer", "n_head", "n_embd", "vocab_size", "n_positions"}) {
    json document = smallest();
    document.erase(field);
    document[field + "s"] = 4;
    expect_refused([&] { parse(document); }, {field, "missing", "\"" + field + "s\""});
  }
}

TEST(Config, DimensionsAreIntegersInTheirRange) {
  for (std::string field : {"n_layer", "n_head", "n_embd", "vocab_size", "n_positions", "n_inner"})
    for (json value :
         {json(0), json(-1), json(1.0), json(2.5), json("3"), json(true), json(json::array({3})),
          json(json::object()), json(std::int64_t{1} << 40), json(~std::uint64_t{0}), json(1e300)})
      expect_field_refused(field, value, {"an integer from 1 to"});
  expect_field_refused("n_head", 5, {"n_embd", "24", "5", "multiple"});
}

TEST(Config, TheLargestDimensionsDoNotOverflow) {
  json document = smallest();
  document["n_embd"] = 1 << 20;
  document["n_head"] = 1 << 20;
  document["vocab_size"] = 1 << 28;
  document["n_positions"] = 1 << 28;
  document["n_inner"] = 1 << 22;
  EXPECT_EQ(parse(document).d_head, 1);
}

TEST(Config, EpsilonIsASmallPositiveNumber) {
  EXPECT_EQ(parse(with("layer_norm_epsilon", 1)).norm_eps, 1);
  for (json value :
       {json(0), json(-1e-5), json(1.5), json("1e-5"), json(true), json(json::array())})
    expect_field_refused("layer_norm_epsilon", value, {"above 0"});
}

TEST(Config, FlagsAreBooleans) {
  for (std::string field :
       {"scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings"})
    for (json value : {json(0), json(1), json("true"), json(json::array())})
      expect_field_refused(field, value, {"true or false"});
}

TEST(Config, WhatWouldChangeNumbersIsRefusedByName) {
  expect_field_refused("quantization_config", {{"bits", 4}},
                       {"quantized", "an unknown method, 4 bits"});
  expect_field_refused("auto_map", {{"AutoModel", "x.Y"}}, {"code"});
  expect_field_refused("pruned_heads", {{"0", {1}}}, {"pruned"});
  expect_field_refused("add_cross_attention", true, {"cross-attention"});
  expect_field_refused("is_encoder_decoder", true, {"decoder"});
  EXPECT_EQ(parse(with("pruned_heads", json::object())), parse(smallest()));
  EXPECT_EQ(parse(with("add_cross_attention", false)), parse(smallest()));
}

TEST(Config, AnUnknownFieldIsRefusedWithTheNearestKnown) {
  expect_field_refused("layer_norm_eps", 1e-3,
                       {"not known", "\"layer_norm_epsilon\"", "remove it"});
  expect_field_refused("rope_theta", 10000, {"not known"});
  expect_field_refused("sliding_window", 128, {"not known"});
  expect_field_refused("", 1, {"not known"});
}

TEST(Config, NeutralFieldsChangeNothing) {
  json document = smallest();
  document.update({{"transformers_version", "4.31.0"},
                   {"resid_pdrop", 0.5},
                   {"summary_type", "cls_index"},
                   {"bos_token_id", 3},
                   {"eos_token_id", {3, 4}},
                   {"use_cache", false},
                   {"id2label", {{"0", "x"}}},
                   {"task_specific_params", {{"text-generation", {{"max_length", 50}}}}},
                   {"reorder_and_upcast_attn", true},
                   {"gradient_checkpointing", true},
                   {"output_attentions", true},
                   {"_name_or_path", "gpt2"}});
  EXPECT_EQ(parse(document), parse(smallest()));
}

TEST(Config, OnlyLanguageModelsAreRead) {
  for (std::string name : {"GPT2LMHeadModel", "GPT2Model"})
    EXPECT_EQ(parse(with("architectures", {name})), parse(smallest()));
  EXPECT_EQ(parse(with("architectures", json::array())), parse(smallest()));
  for (std::string name :
       {"GPT2ForSequenceClassification", "GPT2DoubleHeadsModel", "LlamaForCausalLM", ""})
    expect_field_refused("architectures", {name}, {"\"" + name + "\"", "GPT2LMHeadModel"});
  expect_field_refused("architectures", "GPT2LMHeadModel", {"array"});
  expect_field_refused("architectures", {3}, {"string"});
}

TEST(Config, ADocumentThatIsNoObjectIsRefused) {
  for (json document : {json::array(), json("gpt2"), json(nullptr), json(3)})
    expect_refused([&] { parse(document); }, {"config.json", "object"});
}

TEST(Config, ToJsonNamesEveryField) {
  json document = to_json(parse(smallest()));
  EXPECT_EQ(document["norm"], "layer_norm");
  EXPECT_EQ(document["d_model"], 24);
  EXPECT_EQ(document["stored_dtype"], "float32");
  EXPECT_EQ(document.size(), 18u);  // as many as Config has members
}

TEST(ReadConfig, RefusesFilesThatAreMissingOrNotJson) {
  Scratch scratch;
  expect_refused<std::system_error>([&] { read_config(scratch.path()); }, {"config.json"});
  write_file(scratch / "config.json", "{\"model_type\":\"gpt2\",}");
  expect_refused([&] { read_config(scratch.path()); }, {"config.json", "not JSON", "byte"});
  write_file(scratch / "config.json", R"({"model_type":"gpt2","n_layer":1,"n_layer":2})");
  expect_refused([&] { read_config(scratch.path()); }, {"\"n_layer\"", "twice"});
}

TEST(ReadConfig, ReadsEveryGoldenCase) {
  std::size_t read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2"))
    if (entry.is_directory()) {
      EXPECT_NO_THROW(read_config(entry.path())) << entry.path();
      ++read;
    }
  EXPECT_GE(read, 8u);
  auto golden = [](const char* name) {
    return read_config(std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2" / name);
  };
  EXPECT_FALSE(golden("unscaled_attention").scale_attn_by_sqrt_d_head);
  EXPECT_TRUE(golden("inverse_layer_scale").scale_attn_by_inverse_layer);
  EXPECT_FALSE(golden("untied").tied_unembedding);
  EXPECT_EQ(golden("hub_names").d_mlp, 96);
  EXPECT_EQ(golden("float16").stored_dtype, DType::f16);
  EXPECT_EQ(golden("odd_heads").activation, Activation::gelu_erf);
}

json smallest_mixtral() {
  return {{"model_type", "mixtral"},     {"num_hidden_layers", 2}, {"num_attention_heads", 4},
          {"hidden_size", 16},           {"vocab_size", 11},       {"max_position_embeddings", 8},
          {"num_key_value_heads", 2},    {"intermediate_size", 6}, {"router_jitter_noise", 0.1},
          {"output_router_logits", true}};
}

TEST(Config, ExpertsHaveTransformersDefaults) {
  Config config = parse(smallest_mixtral());
  EXPECT_EQ(config.experts, (Experts{.count = 8, .per_token = 2}));
  EXPECT_EQ(config.n_neurons(), 48);
  EXPECT_TRUE(config.gated_mlp);
  EXPECT_EQ(config.norm_eps, 1e-5);
  EXPECT_EQ(config.rotary->rope.base, 1e6);
  EXPECT_FALSE(config.window);
  EXPECT_EQ(to_json(config).at("experts"), (json{{"count", 8}, {"per_token", 2}}));
  EXPECT_FALSE(to_json(parse(smallest())).contains("experts"));
}

TEST(Config, ExpertsThatAreNotThereAreRefused) {
  for (auto [field, value] : {std::pair<std::string, json>{"num_experts_per_tok", 9},
                              {"num_experts_per_tok", 0},
                              {"num_local_experts", 1},
                              {"num_local_experts", 0}}) {
    json document = smallest_mixtral();
    document[field] = value;
    expect_refused([&] { parse(document); }, {"[config] config.json", "num_"});
  }
}

}  // namespace
}  // namespace lenscpp
