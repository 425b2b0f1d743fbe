// The loss against numbers that can be done by hand, and every refusal.
#include "lens/loss.h"

#include <gtest/gtest.h>

#include <cmath>

namespace lenscpp {
namespace {

TEST(Loss, UniformLogitsCostTheLogarithmOfTheVocabulary) {
  Array logits = MutableArray({2, 3, 5}, DType::f32).freeze();
  Array loss = next_token_loss(logits, {0, 1, 2, 3, 4, 0});
  ASSERT_EQ(loss.shape(), (Shape{2, 2}));
  for (std::int64_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(loss[i], std::log(5.0));
  EXPECT_EQ(mean_of(loss).shape(), Shape{});
  EXPECT_FLOAT_EQ(mean_of(loss)[0], std::log(5.0));
}

TEST(Loss, ReadsTheNextTokenOfEachPromptByItself) {
  MutableArray logits({2, 3, 4}, DType::f64);
  std::vector<std::int64_t> tokens{3, 1, 2, 0, 2, 3};
  // At prompt b and position p the next token gets the logit 10 + b + p, all others 0.
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t p = 0; p < 2; ++p)
      logits.set((b * 3 + p) * 4 + tokens[b * 3 + p + 1], 10.0 + b + p);
  Array loss = next_token_loss(std::move(logits).freeze(), tokens);
  EXPECT_EQ(loss.dtype(), DType::f64);
  for (std::int64_t i = 0; i < 4; ++i)
    EXPECT_NEAR(loss[i], std::log1p(3 * std::exp(-(10.0 + i / 2 + i % 2))), 1e-15);
}

TEST(Loss, LargeLogitsDoNotOverflow) {
  double values[] = {1e4, -1e4, 0, 0};
  Array loss = next_token_loss(Array::of(std::span<const double>(values), {1, 2, 2}), {0, 1});
  EXPECT_DOUBLE_EQ(loss[0], 2e4);
}

TEST(Loss, NarrowLogitsGiveFloat32) {
  EXPECT_EQ(next_token_loss(MutableArray({1, 2, 3}, DType::bf16).freeze(), {0, 1}).dtype(),
            DType::f32);
}

TEST(Loss, Refuses) {
  Array logits = MutableArray({1, 2, 3}, DType::f32).freeze();
  EXPECT_THROW(next_token_loss(logits, {0}), std::invalid_argument);
  EXPECT_THROW(next_token_loss(logits, {0, 3}), std::out_of_range);
  EXPECT_THROW(next_token_loss(logits, {-1, 0}), std::out_of_range);
  EXPECT_THROW(next_token_loss(logits.reshaped({2, 3}), {0, 1}), std::invalid_argument);
  EXPECT_THROW(next_token_loss(MutableArray({1, 1, 3}, DType::f32).freeze(), {0}),
               std::invalid_argument);
  EXPECT_THROW(mean_of(MutableArray({0}, DType::f32).freeze()), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
