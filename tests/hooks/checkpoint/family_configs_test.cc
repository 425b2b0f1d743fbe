// What the families' config.json may not say: every refusal names the field and what is allowed.
#include <gtest/gtest.h>

#include <fstream>

#include "hooks/checkpoint/config.h"
#include "hooks/checkpoint/families/family.h"
#include "tests/golden_cases.h"
#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {
namespace {

using nlohmann::json;

json config_of(const std::string& name) {
  return json::parse(std::ifstream(golden::family_folder(name) / "config.json"));
}

void expect_config_refused(const json& document, std::initializer_list<std::string> parts) {
  SCOPED_TRACE(document.dump());
  expect_refused([&] { parse_config(document, "config.json"); }, parts);
}

// Families that read rotary angles as most do.
const std::vector<std::string> kRotary{"llama_plain",     "mistral_window",   "qwen2_grouped",
                                       "qwen3_grouped",   "gemma_multiquery", "gemma2_grouped",
                                       "neox_sequential", "phi_grouped",      "phi3_grouped",
                                       "olmo2_grouped",   "falcon_grouped",   "stablelm_parallel"};

// Of either spelling.
json with_rope(const std::string& name, json rope, bool older) {
  json document = config_of(name);
  double theta = 10'000;
  document.erase("rope_parameters");
  document.erase("rope_scaling");
  document.erase("rope_theta");
  if (older)
    document["rope_theta"] = theta;
  else
    rope["rope_theta"] = theta;
  document[older ? "rope_scaling" : "rope_parameters"] = rope;
  return document;
}

TEST(FamilyConfigs, KindsOfRotaryScalingThatAreNotComputedAreRefusedByName) {
  const json longrope{{"short_factor", {1.0, 1.5}},
                      {"long_factor", {1.0, 4.0}},
                      {"original_max_position_embeddings", 16}};
  for (const std::string& name : kRotary)
    for (bool older : {false, true})
      for (const char* spelled : {"rope_type", "type"}) {
        EXPECT_NO_THROW(parse_config(with_rope(name, {{spelled, "default"}}, older), "")) << name;
        for (std::string kind : {"longrope", "su", "mrope", "proportional", "LLAMA3", ""}) {
          json rope = kind == "longrope" || kind == "su" ? longrope : json::object();
          rope[spelled] = kind;
          expect_config_refused(with_rope(name, rope, older),
                                {"rope_parameters", "rope_type", "\"" + kind + "\"",
                                 "allowed: default, linear, dynamic, llama3, yarn"});
        }
        for (const char* declared : {"default", "mrope"})
          expect_config_refused(
              with_rope(name, {{spelled, declared}, {"mrope_section", {1, 1, 2}}}, older),
              {"rope_parameters",
               declared == std::string("mrope") ? "\"mrope\"" : "mrope_section"});
      }
}

TEST(FamilyConfigs, BothRopesOfGemma3AreRead) {
  for (const char* layers : {"full_attention", "sliding_attention"}) {
    json document = config_of("gemma3_windows");
    document["rope_parameters"][layers]["rope_type"] = "longrope";
    expect_config_refused(document, {"\"longrope\"", "allowed: default"});
    document = config_of("gemma3_windows");
    document["rope_parameters"][layers]["mrope_section"] = {1, 1};
    expect_config_refused(document, {"mrope_section"});
  }
  json document = config_of("gemma3_windows");
  document["rope_parameters"]["chunked_attention"] = {{"rope_type", "default"}};
  expect_config_refused(document, {"rope_parameters", "chunked_attention"});
}

TEST(FamilyConfigs, WhatAScalingNeedsMustBeThereAndNothingElse) {
  auto refused = [](json rope, std::initializer_list<std::string> parts) {
    expect_config_refused(with_rope("llama_plain", std::move(rope), false), parts);
  };
  for (std::string kind : {"linear", "dynamic", "llama3", "yarn"})
    refused({{"rope_type", kind}}, {"factor", "missing"});
  for (json factor : {json(0), json(-2.0), json("8"), json(nullptr)})
    refused({{"rope_type", "linear"}, {"factor", factor}}, {"factor"});
  refused({{"rope_type", "default"}, {"factor", 8.0}}, {"factor", "not known"});
  refused({{"rope_type", "llama3"}, {"factor", 8.0}, {"high_freq_factor", 4.0}},
          {"low_freq_factor", "missing"});
  refused({{"rope_type", "llama3"},
           {"factor", 8.0},
           {"low_freq_factor", 4.0},
           {"high_freq_factor", 4.0}},
          {"low_freq_factor", "below high_freq_factor"});
  refused({{"rope_type", "yarn"}, {"factor", 4.0}, {"betafast", 32}}, {"betafast", "beta_fast"});
}

TEST(FamilyConfigs, AnOddNumberOfTurnedDimensionsIsRefused) {
  for (double share : {0.13, 0.38, 0.63, 0.9, 1.2, 0.0, -0.5}) {  // of 8: 1, 3, 5, 7, 9, 0, -4
    json document = config_of("neox_sequential");
    document["rope_parameters"]["partial_rotary_factor"] = share;
    expect_config_refused(document, {"partial_rotary_factor", "of the 8 dimensions", "even"});
    document.erase("rope_parameters");
    document["rotary_pct"] = share;
    expect_config_refused(document, {"turns", "of the 8 dimensions", "even"});
  }
  json llama = config_of("llama_plain");
  llama["head_dim"] = 7;
  expect_config_refused(llama, {"turns 7 of the 7 dimensions", "even"});
  for (std::int64_t turned : {1, 3, 5, 7, 12}) {
    json document = config_of("gptj_rotary");
    document["rotary_dim"] = turned;
    expect_config_refused(document, {"rotary_dim", "is " + std::to_string(turned), "even"});
  }
}

TEST(FamilyConfigs, WhatIsNotComputedIsRefusedByName) {
  struct Refusal {
    std::string name, field;
    json value;
  };
  for (const Refusal& r :
       std::vector<Refusal>{{"gemma2_grouped", "use_bidirectional_attention", true},
                            {"bloom_alibi", "apply_residual_connection_post_layernorm", true},
                            {"phi_partial", "qk_layernorm", true},
                            {"stablelm_parallel", "qk_layernorm", true},
                            {"opt_tied", "do_layer_norm_before", false},
                            {"opt_tied", "word_embed_proj_dim", 7},
                            {"falcon_grouped", "alibi", true},
                            {"gemma2_grouped", "attn_logit_softcapping", -1},
                            {"gemma3_windows", "final_logit_softcapping", 0},
                            {"llama_plain", "num_key_value_heads", 3},
                            {"llama_plain", "hidden_act", "quick_gelu"},
                            {"mistral_window", "layer_types", {"sliding_attention"}},
                            {"qwen2_window",
                             "layer_types",
                             {"full_attention", "chunked_attention", "full_attention"}},
                            {"gemma3_windows", "rms_norm_eps", 0},
                            {"gptj_rotary", "rotary_dim", nullptr},
                            {"llama_plain", "a_field_of_the_future", 1}}) {
    json document = config_of(r.name);
    EXPECT_NO_THROW(parse_config(document, "")) << r.name;
    document[r.field] = r.value;
    expect_config_refused(document, {"[config] config.json", r.field});
  }
}

// The windows layer by layer: no layer having one may be spelled in two ways.
json in_words(Config config) {
  json windows;
  for (std::int64_t l = 0; l < config.n_layers; ++l)
    windows.push_back(config.window_of(l).value_or(0));
  config.windowed_layers.clear();
  json words = to_json(config);
  words["windows"] = windows;
  return words;
}

void expect_absent_fields_meant(const json& document) {
  Config whole = parse_config(document, "config.json");
  int meant = 0;
  for (const auto& [field, value] : document.items()) {
    json without = document;
    without.erase(field);
    SCOPED_TRACE(whole.family + " without " + field);
    try {
      EXPECT_EQ(in_words(parse_config(without, "config.json")), in_words(whole)) << value.dump();
      meant += !value.is_null();
    } catch (const std::invalid_argument& e) {
      EXPECT_NE(std::string(e.what()).find("missing"), std::string::npos) << e.what();
    }
  }
  EXPECT_GT(meant, 10) << whole.family;
}

// transformers' own defaults, one left out at a time: the same model, or a refusal that says what
// is missing. With as many heads as it makes of nothing, one number of key-value heads is like
// another; so again with more.
TEST(FamilyConfigs, AnAbsentFieldMeansWhatTransformersMakesOfIt) {
  for (const char* file : {"defaults.json", "defaults_of_twice_the_heads.json"}) {
    json all = json::parse(std::ifstream(golden::family_folder(file)));
    for (const Family& family : families())
      expect_absent_fields_meant(all.at(std::string(family.model_type)));
  }
}

TEST(FamilyConfigs, AbsentKeyValueHeadsThatDoNotDivideAreRefusedAsAbsent) {
  json document = config_of("mixtral_window");  // 4 heads
  document.erase("num_key_value_heads");
  expect_config_refused(document, {"num_key_value_heads", "absent, which means 8", "4"});
}

TEST(FamilyConfigs, GptNeosRepeatedKindsOfLayersAreReadWithCare) {
  json document = config_of("gpt_neo_local");
  Config expected = parse_config(document, "");
  document.erase("attention_layers");
  EXPECT_EQ(parse_config(document, ""), expected);
  document["attention_types"] = json::parse(R"([[["global", "local"], 1], [["global"], 1]])");
  EXPECT_EQ(parse_config(document, ""), expected);
  for (const char* wrong :
       {"3", "\"global\"", "[[\"global\", 3]]", "[[[\"global\"], -1]]", "[[[\"global\"], 2.5]]",
        "[[[\"global\"], 1e300]]", "[[[\"global\"], 1000000000000]]", "[[[\"global\"], 4]]",
        "[[[\"global\"]]]", "[[[3], 3]]", "{}", "[]", "[[[\"windowed\"], 3]]",
        "[[[\"global\"], 2]]"}) {
    document["attention_types"] = json::parse(wrong);
    expect_config_refused(document, {"[config] config.json", "attention_types"});
  }
}

TEST(FamilyConfigs, QwensWindowIsOnlyThereWhereItIsUsed) {
  json document = config_of("qwen2_window"), unused = document;
  unused["use_sliding_window"] = false;
  unused["sliding_window"] = 3;
  unused["max_window_layers"] = 0;
  unused.erase("layer_types");
  EXPECT_TRUE(parse_config(document, "").window_of(2));
  for (std::int64_t l : {0, 1, 2}) EXPECT_FALSE(parse_config(unused, "").window_of(l)) << l;
}

}  // namespace
}  // namespace lenscpp
