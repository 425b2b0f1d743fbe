// The registry: names, shapes and order as TransformerLens has them.
#include "hooks/hook_point.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace lenscpp {
namespace {

Config small(NormKind norm = NormKind::layer_norm) {
  Config c{};
  c.n_layers = 3, c.n_heads = 4, c.n_kv_heads = 4, c.d_model = 8, c.d_head = 2, c.d_mlp = 16,
  c.d_vocab = 11, c.n_ctx = 7;
  c.norm = norm;
  return c;
}

TEST(HookPoint, GivesTransformerLenssNamesInFiringOrder) {
  auto names = hook_names(small());
  ASSERT_EQ(names.size(), 17u * 3 + 6);  // spec: 17 a block and 6
  std::vector<std::string> first(names.begin(), names.begin() + 19);
  std::vector<std::string> expected{"hook_embed",
                                    "hook_pos_embed",
                                    "blocks.0.hook_resid_pre",
                                    "blocks.0.ln1.hook_scale",
                                    "blocks.0.ln1.hook_normalized",
                                    "blocks.0.attn.hook_q",
                                    "blocks.0.attn.hook_k",
                                    "blocks.0.attn.hook_v",
                                    "blocks.0.attn.hook_attn_scores",
                                    "blocks.0.attn.hook_pattern",
                                    "blocks.0.attn.hook_z",
                                    "blocks.0.hook_attn_out",
                                    "blocks.0.hook_resid_mid",
                                    "blocks.0.ln2.hook_scale",
                                    "blocks.0.ln2.hook_normalized",
                                    "blocks.0.mlp.hook_pre",
                                    "blocks.0.mlp.hook_post",
                                    "blocks.0.hook_mlp_out",
                                    "blocks.0.hook_resid_post"};
  EXPECT_EQ(first, expected);
  EXPECT_EQ(names.back(), "unembed.hook_out");
}

TEST(HookPoint, OnDemandPointsAreListedOnlyWhenAskedFor) {
  auto all = hook_names(small(), true), usual = hook_names(small());
  for (std::string name : {"hook_tokens", "blocks.2.attn.hook_result", "blocks.0.hook_q_input",
                           "blocks.1.hook_mlp_in", "blocks.1.hook_attn_in"}) {
    EXPECT_NE(std::ranges::find(all, name), all.end()) << name;
    EXPECT_EQ(std::ranges::find(usual, name), usual.end()) << name;
  }
}

TEST(HookPoint, EveryNameFindsItsOwnSite) {
  for (const std::string& name : hook_names(small(), true)) {
    TensorId id = find_hook(name, {}, {}, small());
    EXPECT_EQ(hook_name(id.site, id.layer), name);
  }
}

struct ShortForm {
  std::string name;
  std::optional<std::int64_t> layer;
  std::string layer_type, full;
};
class GetActName : public testing::TestWithParam<ShortForm> {};
TEST_P(GetActName, MeansWhatTransformerLensMeans) {
  EXPECT_EQ(act_name(GetParam().name, GetParam().layer, GetParam().layer_type), GetParam().full);
}
INSTANTIATE_TEST_SUITE_P(
    HookPoint, GetActName,
    testing::Values(ShortForm{"k", 6, "a", "blocks.6.attn.hook_k"},
                    ShortForm{"k6", {}, "", "blocks.6.attn.hook_k"},
                    ShortForm{"pre", 2, "", "blocks.2.mlp.hook_pre"},
                    ShortForm{"mlp_pre", 2, "", "blocks.2.mlp.hook_pre"},
                    ShortForm{"embed", {}, "", "hook_embed"},
                    ShortForm{"normalized", 27, "ln2", "blocks.27.ln2.hook_normalized"},
                    ShortForm{"scale4ln1", {}, "", "blocks.4.ln1.hook_scale"},
                    ShortForm{"pre5", {}, "", "blocks.5.mlp.hook_pre"},
                    ShortForm{"resid_post", 3, "", "blocks.3.hook_resid_post"},
                    ShortForm{"attn", 1, "", "blocks.1.attn.hook_pattern"},
                    ShortForm{"attn_logits", 1, "", "blocks.1.attn.hook_attn_scores"},
                    ShortForm{"query", 1, "", "blocks.1.attn.hook_q"},
                    ShortForm{"scale", {}, "", "ln_final.hook_scale"},
                    ShortForm{"normalized", {}, "", "ln_final.hook_normalized"},
                    ShortForm{"blocks.3.hook_mlp_out", {}, "", "blocks.3.hook_mlp_out"}));

TEST(HookPoint, LayersMayBeCountedFromTheEnd) {
  EXPECT_EQ(find_hook("resid_post", -1, "", small()), (TensorId{Site::resid_post, 2}));
  EXPECT_THROW(find_hook("resid_post", -4, "", small()), std::exception);
}

TEST(HookPoint, UnknownNamesListTheNearestAndBadLayersTheRange) {
  try {
    find_hook("blocks.1.attn.hook_patern", {}, {}, small());
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("blocks.1.attn.hook_pattern"), std::string::npos)
        << e.what();
  }
  try {
    find_hook("blocks.3.attn.hook_q", {}, {}, small());
    FAIL();
  } catch (const std::out_of_range& e) {
    EXPECT_NE(std::string(e.what()).find("0..2"), std::string::npos) << e.what();
  }
}

TEST(HookPoint, InternalLinksHaveNoPublicName) {
  EXPECT_THROW(find_hook("blocks.0.ln1.out", {}, {}, small()), std::invalid_argument);
  EXPECT_TRUE(exists(Site::ln1_out, small()));
  EXPECT_FALSE(exists(Site::ln1_out, small(NormKind::layer_norm_pre)));
}

// Else a fault at an internal tensor, named in full, would be looked for elsewhere.
TEST(HookPoint, NoFullNameIsTakenForAShortForm) {
  for (const SiteInfo& row : all_sites()) {
    std::string name = hook_name(row.site, 2);
    EXPECT_EQ(act_name(name), name);
  }
}

TEST(HookPoint, ShapesFollowTheAxes) {
  Extents e{.batch = 2, .pos = 5, .key = 9};
  EXPECT_EQ(shape_of(Site::resid_pre, small(), e), (Shape{2, 5, 8}));
  EXPECT_EQ(shape_of(Site::z, small(), e), (Shape{2, 5, 4, 2}));
  EXPECT_EQ(shape_of(Site::pattern, small(), e), (Shape{2, 4, 5, 9}));
  EXPECT_EQ(shape_of(Site::ln1_scale, small(), e), (Shape{2, 5, 1}));
  EXPECT_EQ(shape_of(Site::unembed_out, small(), e), (Shape{2, 5, 11}));
  EXPECT_EQ(shape_of(Site::result, small(), e), (Shape{2, 5, 4, 8}));
}

TEST(HookPoint, ExpertsStandInThePlaceOfOneMlp) {
  Config c = small(NormKind::rms_norm);
  c.gated_mlp = true;
  auto of_mlp = [&] {
    std::vector<std::string> names;
    for (const std::string& name : hook_names(c))
      if (name.starts_with("blocks.1.mlp.")) names.push_back(name.substr(13));
    return names;
  };
  EXPECT_EQ(of_mlp(), (std::vector<std::string>{"hook_pre", "hook_pre_linear", "hook_post"}));
  c.experts = Experts{.count = 5, .per_token = 2};
  EXPECT_EQ(of_mlp(),
            (std::vector<std::string>{"hook_expert_weights", "hook_expert_indices",
                                      "hook_expert_gate", "hook_expert_pre", "hook_expert_post"}));
  Extents e{.batch = 2, .pos = 3, .key = 3};
  EXPECT_EQ(shape_of(Site::expert_weights, c, e), (Shape{2, 3, 5}));
  EXPECT_EQ(shape_of(Site::expert_indices, c, e), (Shape{2, 3, 2}));
  EXPECT_EQ(shape_of(Site::expert_post, c, e), (Shape{2, 3, 5, 16}));
  EXPECT_EQ(stored_dtype(Site::expert_weights, DType::bf16), DType::f32);
  EXPECT_EQ(stored_dtype(Site::expert_indices, DType::bf16), DType::i64);
  EXPECT_EQ(find_hook("expert_weights", 1, "mlp", c), (TensorId{Site::expert_weights, 1}));
  try {
    find_hook("post", 1, "", c);
    ADD_FAILURE() << "not refused";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("hook_expert_post"), std::string::npos)
        << error.what();
  }
}

TEST(HookPoint, AScaleIsStoredAsItWasAccumulated) {
  EXPECT_EQ(stored_dtype(Site::ln1_scale, DType::bf16), DType::f32);
  EXPECT_EQ(stored_dtype(Site::ln1_scale, DType::f64), DType::f64);
  EXPECT_EQ(stored_dtype(Site::q, DType::bf16), DType::bf16);
  EXPECT_EQ(stored_dtype(Site::tokens, DType::bf16), DType::i64);
}

}  // namespace
}  // namespace lenscpp
