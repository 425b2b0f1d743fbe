// Statistics against the formulas of their definitions on small data, and against what chance alone
// does.
#include "patching/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

namespace lenscpp {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

Measured of_one_cell(const std::vector<double>& values, std::vector<double> clean,
                     std::vector<double> corrupted) {
  auto n = std::ssize(values);
  return {Array::of(std::span<const double>(values), {n, 1}), std::move(clean),
          std::move(corrupted)};
}

TEST(Statistics, FollowTheirDefinitions) {
  // Effects 1, 3, 2; ranges 4, 4, 2.
  Measured m = of_one_cell({1, 4, 2}, {4, 5, 2}, {0, 1, 0});
  CellStatistics s = statistics_of(m).cells[0];
  EXPECT_EQ(s.n, 3);
  EXPECT_EQ(s.clusters, 3);
  EXPECT_DOUBLE_EQ(s.mean, 2);
  EXPECT_DOUBLE_EQ(s.standard_error, 1 / std::sqrt(3.0));  // s = 1, over sqrt(n)
  EXPECT_DOUBLE_EQ(s.ratio_of_means, 6.0 / 10);
  EXPECT_DOUBLE_EQ(s.mean_of_ratios, (0.25 + 0.75 + 1) / 3);
  EXPECT_DOUBLE_EQ(s.sign_consistency, 1);
  // All eight assignments of signs; the sum is as large in two of them.
  EXPECT_DOUBLE_EQ(s.p, 2.0 / 8);
  EXPECT_GE(s.low, 1);
  EXPECT_LE(s.high, 3);
  EXPECT_LT(s.low, s.mean);
  EXPECT_GT(s.high, s.mean);
}

TEST(Statistics, TakeTheBaseOfTheDirection) {
  Measured m = of_one_cell({1, 4, 2}, {4, 5, 2}, {0, 1, 0});
  m.direction = Direction::noise;  // effects -3, -1, 0
  CellStatistics s = statistics_of(m).cells[0];
  EXPECT_DOUBLE_EQ(s.mean, -4.0 / 3);
  EXPECT_DOUBLE_EQ(s.sign_consistency, 2.0 / 3);
  EXPECT_DOUBLE_EQ(s.ratio_of_means, 6.0 / 10);  // the same scale in both directions
}

TEST(Statistics, CountATemplateOnce) {
  // Each experiment four times over: as independent ones the error halves, as clusters it stays.
  std::vector<double> values, clean, corrupted;
  std::vector<std::int64_t> cluster;
  for (double effect : {1.0, 3.0, 2.0})
    for (int copy = 0; copy < 4; ++copy) {
      values.push_back(effect);
      clean.push_back(4);
      corrupted.push_back(0);
      cluster.push_back(static_cast<std::int64_t>(effect));
    }
  Measured m = of_one_cell(values, clean, corrupted);
  double independent = statistics_of(m).cells[0].standard_error;
  m.cluster = cluster;
  CellStatistics s = statistics_of(m).cells[0];
  EXPECT_EQ(s.clusters, 3);
  EXPECT_EQ(s.n, 12);
  EXPECT_NEAR(s.standard_error, 1 / std::sqrt(3.0), 1e-12);
  EXPECT_LT(independent, 0.6 * s.standard_error);
  EXPECT_DOUBLE_EQ(s.p, 2.0 / 8);
}

TEST(Statistics, LeaveOutExperimentsWithoutTheCell) {
  std::vector<double> values = {1, kNaN, 4, kNaN, 2, 7};
  Measured m{Array::of(std::span<const double>(values), {3, 2}), {4, 5, 2}, {0, 1, 0}};
  GridStatistics s = statistics_of(m);
  EXPECT_EQ(s.cells[0].n, 3);
  EXPECT_DOUBLE_EQ(s.cells[0].mean, 2);
  EXPECT_EQ(s.cells[1].n, 1);
  EXPECT_DOUBLE_EQ(s.cells[1].mean, 7);
  EXPECT_TRUE(std::isnan(s.cells[1].standard_error));
  EXPECT_TRUE(std::isnan(s.cells[1].low));
}

TEST(Statistics, BenjaminiAndHochbergByHand) {
  // Signs alike in 3, 4 and 2 experiments of 4: q = min over larger p of p m / rank.
  std::vector<double> values = {1, 1, 1, 1, 1, -0.9, 1, 1, 1, -0.9, 1, -0.9};
  Measured m{Array::of(std::span<const double>(values), {4, 3}), {2, 2, 2, 2}, {0, 0, 0, 0}};
  GridStatistics s = statistics_of(m);
  std::vector<double> p, q;
  for (const CellStatistics& cell : s.cells) {
    p.push_back(cell.p);
    q.push_back(cell.q);
  }
  std::vector<std::size_t> order = {0, 1, 2};
  std::ranges::sort(order, {}, [&](std::size_t c) { return p[c]; });
  double least = 1;
  for (std::size_t rank = 3; rank-- > 0;) {
    least = std::min(least, p[order[rank]] * 3 / static_cast<double>(rank + 1));
    EXPECT_DOUBLE_EQ(q[order[rank]], least);
  }
  EXPECT_DOUBLE_EQ(p[1], 2.0 / 16);
}

TEST(Statistics, FindAnEffectAndNothingInNoise) {
  std::mt19937_64 random(7);
  std::normal_distribution<double> noise;
  constexpr std::int64_t kN = 60, kCells = 40;
  std::vector<double> values;
  for (std::int64_t i = 0; i < kN * kCells; ++i)
    values.push_back(noise(random) + (i % kCells == 5 ? 2 : 0));
  Measured m{Array::of(std::span<const double>(values), {kN, kCells}), std::vector<double>(kN, 4),
             std::vector<double>(kN, 0)};
  GridStatistics s = statistics_of(m);
  ASSERT_FALSE(s.top.empty());
  EXPECT_EQ(s.top[0], 5);
  EXPECT_LE(s.significant, 3);
  EXPECT_LT(s.cells[5].q, 0.01);
}

// Intervals of 95 % hold the true mean about that often.
TEST(Statistics, IntervalsCoverAsOftenAsTheySay) {
  std::mt19937_64 random(11);
  std::normal_distribution<double> noise;
  int covered = 0;
  constexpr int kTrials = 200;
  constexpr std::int64_t kN = 40;
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<double> values;
    for (std::int64_t i = 0; i < kN; ++i) values.push_back(1 + noise(random));
    Measured m = of_one_cell(values, std::vector<double>(kN, 4), std::vector<double>(kN, 0));
    CellStatistics s = statistics_of(m, {.resamples = 400, .permutations = 1}).cells[0];
    covered += s.low <= 1 && 1 <= s.high ? 1 : 0;
  }
  // 190 are expected, with a standard deviation of 3; percentile intervals of 40 fall short by 2 %.
  EXPECT_GE(covered, 172);
  EXPECT_LE(covered, 199);
}

TEST(Statistics, RepeatWhateverTheThreads) {
  std::mt19937_64 random(3);
  std::vector<double> values(90);
  for (double& x : values) x = static_cast<double>(random() % 1000) / 100;
  Measured m{Array::of(std::span<const double>(values), {30, 3}), std::vector<double>(30, 9),
             std::vector<double>(30, 1)};
  ParallelFor in_three = [](std::int64_t n, const auto& body) {
    for (std::int64_t part : {2, 0, 1}) body(part * n / 3, (part + 1) * n / 3);
  };
  EXPECT_EQ(to_json(statistics_of(m)), to_json(statistics_of(m, {}, in_three)));
}

TEST(Statistics, ComeBackFromJson) {
  GridStatistics s = statistics_of(of_one_cell({1}, {4}, {0}));  // some of it is NaN
  nlohmann::json json = nlohmann::json::parse(to_json(s).dump());
  EXPECT_EQ(to_json(grid_statistics_from_json(json)).dump(), to_json(s).dump());
  EXPECT_TRUE(std::isnan(grid_statistics_from_json(json).cells[0].standard_error));
}

TEST(Statistics, TakeNoNonsense) {
  Measured m = of_one_cell({1, 2}, {4, 4}, {0, 0});
  for (const StatisticsOptions& o : {StatisticsOptions{.resamples = -1},
                                     {.resamples = std::int64_t{1} << 40},
                                     {.permutations = 0},
                                     {.level = 1},
                                     {.false_discovery_rate = kNaN},
                                     {.false_discovery_rate = 2},
                                     {.top = 0},
                                     {.error_bar = kNaN}})
    EXPECT_THROW(statistics_of(m, o), std::invalid_argument);
}

TEST(Statistics, FindNothingWithinTheErrorBar) {
  std::vector<double> values(12, 1e-7);
  Measured m = of_one_cell(values, std::vector<double>(12, 4), std::vector<double>(12, 0));
  EXPECT_EQ(statistics_of(m).significant, 1);
  EXPECT_EQ(statistics_of(m, {.error_bar = 1e-6}).significant, 0);
  EXPECT_TRUE(
      std::isnan(statistics_of(of_one_cell({0, 0}, {4, 4}, {0, 0})).cells[0].sign_consistency));
}

// Effects 1, 2, 3 and 10 in clusters {1, 2}, {3}, {10}; ranges 4, 8, 4, 5.
TEST(Statistics, ClustersOfUnequalSize) {
  Measured m = of_one_cell({1, 2, 3, 10}, {4, 8, 4, 5}, {0, 0, 0, 0});
  m.cluster = {7, 7, 9, 8};
  CellStatistics s = statistics_of(m).cells[0];
  EXPECT_DOUBLE_EQ(s.mean, 4);
  // Residual sums of clusters: -5, -1, 6.
  EXPECT_DOUBLE_EQ(s.standard_error, std::sqrt(3.0 / 2 * (25 + 1 + 36)) / 4);
  EXPECT_DOUBLE_EQ(s.mean_of_ratios, (0.25 + 0.25 + 0.75 + 2) / 4);
  double r = s.mean_of_ratios, a = 0.5 - 2 * r, b = 0.75 - r, c = 2 - r;
  EXPECT_DOUBLE_EQ(s.ratio_standard_error, std::sqrt(3.0 / 2 * (a * a + b * b + c * c)) / 4);
  EXPECT_DOUBLE_EQ(s.ratio_of_means, 16.0 / 21);
  // Cluster sums 3, 3, 10: as large in absolute value only with all signs alike.
  EXPECT_DOUBLE_EQ(s.p, 2.0 / 8);
}

// 2^14 assignments, of which 1,000 are drawn: p within what drawing them allows.
TEST(Statistics, RandomSignsAreAsGoodAsAll) {
  std::vector<double> values;
  for (int i = 0; i < 14; ++i) values.push_back(0.4 + std::sin(3.0 * i));
  Measured m = of_one_cell(values, std::vector<double>(14, 4), std::vector<double>(14, 0));
  double all = statistics_of(m, {.permutations = 1 << 14}).cells[0].p;
  double some = statistics_of(m, {.permutations = 1000}).cells[0].p;
  EXPECT_NEAR(some, all, 4 * std::sqrt(all * (1 - all) / 1000) + 1e-3);
  EXPECT_NE(some, all);
}

TEST(Statistics, RefuseRowsThatDoNotFit) {
  Measured m = of_one_cell({1, 2}, {4}, {0, 0});
  EXPECT_THROW(statistics_of(m), std::invalid_argument);
  EXPECT_THROW(statistics_of(of_one_cell({}, {}, {})), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
