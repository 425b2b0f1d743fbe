// Metrics against formulas by hand, and what they refuse.
#include "patching/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace lenscpp {
namespace {

// Two prompts, two positions, three tokens.
Array logits() {
  return Array::of(std::vector<float>{9, 9, 9, 0, 1, 3, 9, 9, 9, 2, -1, 0.5}, {2, 2, 3});
}

double prob(double a, double b, double c) {
  return std::exp(a) / (std::exp(a) + std::exp(b) + std::exp(c));
}

TEST(Metrics, LogitDiffIsADifferenceAtAPosition) {
  EXPECT_EQ((LogitDiff{2, 0}(logits())), (std::vector<double>{3, -1.5}));
  EXPECT_EQ((LogitDiff{2, 0, 0}(logits())), (std::vector<double>{0, 0}));
  std::vector<std::int64_t> answer{2, 0}, wrong{0, 2};
  EXPECT_EQ((LogitDiff{answer, wrong}(logits())), (std::vector<double>{3, 1.5}));
  EXPECT_DOUBLE_EQ((Metric(LogitDiff{2, 0}).mean(logits())), 0.75);
}

TEST(Metrics, ProbabilitiesAreTheSoftmax) {
  auto p = Prob{1}(logits()), log_p = LogProb{1}(logits());
  EXPECT_NEAR(p[0], prob(1, 0, 3), 1e-15);
  EXPECT_NEAR(p[1], prob(-1, 2, 0.5), 1e-15);
  EXPECT_NEAR(log_p[1], std::log(prob(-1, 2, 0.5)), 1e-15);
  Array huge = Array::of(std::vector<float>{1e30f, 0, -1e30f}, {1, 1, 3});
  EXPECT_EQ(Prob{0}(huge), std::vector<double>{1});
  EXPECT_TRUE(std::isfinite(LogProb{2}(huge)[0]));
}

TEST(Metrics, KLIsOfTheReferenceAgainstTheRun) {
  EXPECT_NEAR((KL{logits()}(logits())[0]), 0, 1e-15);
  Array reference = Array::of(std::vector<float>{0, 0, 0, 2, 0, 1}, {1, 2, 3});
  double expected = 0;
  for (auto [p, q] :
       {std::pair{prob(2, 0, 1), prob(0, 1, 3)}, std::pair{prob(0, 2, 1), prob(1, 0, 3)},
        std::pair{prob(1, 2, 0), prob(3, 0, 1)}})
    expected += p * std::log(p / q);
  EXPECT_NEAR((KL{reference}(logits())[0]), expected, 1e-14);
}

TEST(Metrics, LossIsTheMeanOverPositionsOfEachPrompt) {
  auto loss = Loss{{0, 1, 2, 2}}(logits());  // the second token of each, from its first position
  EXPECT_NEAR(loss[0], std::log(3.0), 1e-15);
  EXPECT_NEAR(loss[1], std::log(3.0), 1e-15);
}

TEST(Metrics, AnyFunctionServes) {
  Metric one([](const Array& x) { return std::vector<double>{x[0]}; });
  EXPECT_EQ(one.mean(logits()), 9);
  EXPECT_EQ(one.description().at("metric"), "function");
  Metric three([](const Array&) { return std::vector<double>{1, 2, 3}; });
  EXPECT_THROW(three.mean(logits()), std::invalid_argument);
  EXPECT_THROW(one.mean(Array::of(std::vector<float>{1}, {1})), std::invalid_argument);
}

TEST(Metrics, WhatIsNotThereIsRefused) {
  EXPECT_THROW((LogitDiff{3, 0}(logits())), std::out_of_range);
  EXPECT_THROW((LogitDiff{0, -1}(logits())), std::out_of_range);
  EXPECT_THROW((Prob{0, 2}(logits())), std::out_of_range);
  EXPECT_THROW((Prob{0, -3}(logits())), std::out_of_range);
  EXPECT_THROW((LogProb{std::vector<std::int64_t>{0, 1, 2}}(logits())), std::invalid_argument);
  EXPECT_THROW((KL{Array::of(std::vector<float>{0, 0}, {1, 1, 2})}(logits())),
               std::invalid_argument);
  EXPECT_THROW((Loss{{0, 1}}(logits())), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
