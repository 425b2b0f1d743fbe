// Weights as they are looked at, against transformer-lens's own state dict.
#include "lens/weight_views.h"

#include <gtest/gtest.h>

#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

// transformer-lens's name of a weight of one layer.
std::string golden_name(const std::string& name, std::int64_t layer) {
  if (name == "W_E") return "embed.W_E";
  if (name == "W_pos") return "pos_embed.W_pos";
  if (name == "W_U" || name == "b_U") return "unembed." + name;
  bool mlp = name.ends_with("_in") || name.ends_with("_out");
  return "blocks." + std::to_string(layer) + (mlp ? ".mlp." : ".attn.") + name;
}

class WeightViews : public testing::TestWithParam<std::string> {};

TEST_P(WeightViews, AreTransformerLenss) {
  Weights weights = process(load_weights(golden::folder(GetParam()), DType::f32), {});
  SafetensorsFile file =
      SafetensorsFile::open(golden::folder(GetParam()) / "tl_weights_processed.safetensors");
  for (const std::string& name : weight_names()) {
    if (name.ends_with("_gate") || name == "W_router") {  // of gated MLPs, of experts alone
      EXPECT_THROW(weight_view(weights, name), std::invalid_argument);
      continue;
    }
    Array view = weight_view(weights, name);
    bool per_layer = golden_name(name, 0).starts_with("blocks.");
    std::int64_t n = per_layer ? weights.config.n_layers : 1;
    for (std::int64_t layer = 0; layer < n; ++layer) {
      Array expected = file.tensor(golden_name(name, layer));
      Array found = per_layer ? view.rows(layer, layer + 1)
                                    .reshaped(Shape(view.shape().begin() + 1, view.shape().end()))
                              : view;
      EXPECT_EQ(found.shape(), expected.shape()) << name;
      EXPECT_LT(golden::normalized_error(found, expected), 1e-5) << name << " of layer " << layer;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, WeightViews,
                         testing::Values("three_layers", "untied", "one_layer_one_head"));

TEST(WeightViewsRefuse, UnknownNamesNamingTheNearest) {
  Weights weights = load_weights(golden::folder("one_layer_one_head"), DType::f32);
  try {
    weight_view(weights, "W_X");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("\"W_E\""), std::string::npos) << error.what();
  }
}

TEST(ResidualDirections, AreColumnsOfTheUnembedding) {
  Weights weights = load_weights(golden::folder("untied"), DType::bf16);
  Array directions = residual_directions(weights, {3, 0, 3});
  Array W_U = weight_view(weights, "W_U");
  ASSERT_EQ(directions.shape(), (Shape{3, weights.config.d_model}));
  for (std::int64_t i = 0; i < weights.config.d_model; ++i) {
    EXPECT_EQ(directions[i], W_U[i * weights.config.d_vocab + 3]);
    EXPECT_EQ(directions[weights.config.d_model + i], W_U[i * weights.config.d_vocab]);
  }
  EXPECT_THROW(residual_directions(weights, {weights.config.d_vocab}), std::out_of_range);
  EXPECT_THROW(residual_directions(weights, {-1}), std::out_of_range);
}

}  // namespace
}  // namespace lenscpp
