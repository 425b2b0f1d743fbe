// The bounds, against their formulas written out by hand and against what honest arithmetic does.
#include "verify/reference/bounds.h"

#include <gtest/gtest.h>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using namespace testing_links;

constexpr double u32 = 0x1p-24, u64 = 0x1p-53;
const Contract kFloat = contract_of(Site::q, DType::f32);
const Contract kDouble = contract_of(Site::q, DType::f64);
const Contract kBrain = contract_of(Site::q, DType::bf16);
const Contract kHalf = contract_of(Site::q, DType::f16);

TEST(Contract, RoundsAsTheStoreAndAccumulatesInFloatAtLeast) {
  EXPECT_EQ(kFloat.u_s, u32);
  EXPECT_EQ(kFloat.u_a, u32);
  EXPECT_EQ(kDouble.u_s, u64);
  EXPECT_EQ(kDouble.u_a, u64);
  EXPECT_EQ(kBrain.u_s, 0x1p-8);
  EXPECT_EQ(kBrain.u_a, u32);
  EXPECT_EQ(kHalf.u_s, 0x1p-11);
  EXPECT_EQ(kHalf.u_a, u32);
}

TEST(Contract, ANormsScaleIsStoredAsItWasAccumulated) {
  EXPECT_EQ(contract_of(Site::ln1_scale, DType::bf16).u_s, u32);
  EXPECT_FALSE(contract_of(Site::ln1_scale, DType::bf16).narrow);
}

TEST(Contract, OnlyFloat64CountsTheReferencesOwnRounding) {
  EXPECT_EQ(kFloat.reference, 1);
  EXPECT_EQ(kBrain.reference, 1);
  EXPECT_EQ(kDouble.reference, 2);
}

TEST(Tolerance, IsOneRoundingOfTheStorePlusSlackPlusTheFloor) {
  EXPECT_DOUBLE_EQ(tolerance(kFloat, -3.0, 0.25), 3 * u32 * (1 + 0x1p-20) + 0.25 + 0x1p-126);
  EXPECT_DOUBLE_EQ(tolerance(kHalf, 2.0, 0), 2 * 0x1p-11 * (1 + 0x1p-20) + 0x1p-25);
  EXPECT_DOUBLE_EQ(tolerance(kDouble, 2.0, 0), 4 * u64 * (1 + 0x1p-20) + 0x1p-1022);
}

TEST(Tolerance, OfAnExactOperationIsZero) { EXPECT_EQ(tolerance(kFloat, 1e6, kExact), 0); }

TEST(Slack, IsTheFormulaOfTheOperation) {
  EXPECT_DOUBLE_EQ(product_slack(kFloat, 64, 2, -5), 8 * u32 * (6 * 2 + 2 * 5));
  EXPECT_DOUBLE_EQ(product_slack(kDouble, 64, 2, 0), 2 * 6 * 8 * u64 * 2);
  EXPECT_DOUBLE_EQ(narrow_product_slack(kBrain, 64, 2), 2 * 64 * u32 * 2);
  EXPECT_DOUBLE_EQ(scores_slack(kFloat, 64, 2, -5), 8 * u32 * (10 * 2 + 2 * 5));
  EXPECT_DOUBLE_EQ(mix_slack(kFloat, 15, 2), 15 * u32 * 2);
  EXPECT_DOUBLE_EQ(mix_slack(kBrain, 15, 2), 2 * 15 * u32 * 2);
  EXPECT_DOUBLE_EQ(mix_slack(kDouble, 15, 2), 2 * 15 * u64 * 2);
  EXPECT_DOUBLE_EQ(norm_scale_slack(kFloat, 3), 8 * u32 * 3);
  EXPECT_DOUBLE_EQ(normalize_slack(kFloat, 3), 8 * u32 * 3);
  EXPECT_DOUBLE_EQ(affine_slack(kFloat, -3), 2 * u32 * 3);
  EXPECT_DOUBLE_EQ(softmax_slack(kFloat, 0.5, 3), 16 * u32 * 0.5 * 5 + 0x1p-122);
  EXPECT_DOUBLE_EQ(softmax_slack(kFloat, 0, 100), 0x1p-122);  // an exponent that underflows
  EXPECT_DOUBLE_EQ(gelu_slack(kFloat, -3), 8 * u32 * 3);
  EXPECT_DOUBLE_EQ(silu_slack(kFloat, -3, 0.5), u32 * (24 + 1.5));
  EXPECT_DOUBLE_EQ(sum_slack(kFloat, 5, 3), 5 * u32 * 3);
  EXPECT_DOUBLE_EQ(scale_slack(kFloat, -3), 2 * u32 * 3);
  EXPECT_DOUBLE_EQ(share_slack(kFloat, 3, 1.5, -0.25), u32 * (3 * 1.5 + 2) * 0.25);
  EXPECT_DOUBLE_EQ(share_slack(kDouble, 3, 1, 0.25), 2 * u64 * 5 * 0.25);
}

// Aligned rows and columns, summed one after another: a legal order, of which a bound on random
// walks alone would refuse a quarter of the elements (K = 3072, cosine 0.5).
TEST(HonestSum, OfAlignedTermsInSequencePasses) {
  for (auto [terms, cosine] : {std::pair{768, 0.5}, {3072, 0.2}, {3072, 0.5}, {12288, 0.3}}) {
    constexpr std::int64_t kRows = 4, kOut = 32;
    Array noise_x = random_array({1, kRows, terms}, DType::f32, 1);
    Array noise_w = random_array({terms, kOut}, DType::f32, 2),
          shared = random_array({terms}, DType::f32, 3);
    double own = std::sqrt(1 - cosine);
    MutableArray x_values({1, kRows, terms}, DType::f32), w_values({terms, kOut}, DType::f32);
    for (std::int64_t i = 0; i < x_values.numel(); ++i)
      x_values.set(i, own * noise_x[i] + std::sqrt(cosine) * shared[i % terms]);
    for (std::int64_t i = 0; i < w_values.numel(); ++i)
      w_values.set(i, own * noise_w[i] + std::sqrt(cosine) * shared[i / kOut]);
    Array x = std::move(x_values).freeze(), w = std::move(w_values).freeze();
    Link link{.op = Op::linear,
              .output = {Site::mlp_out},
              .inputs = {{Site::mlp_post}},
              .weight = Matrix{.storage = w, .in = terms, .out = kOut}};
    MutableArray y({1, kRows, kOut}, DType::f32);
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t j = 0; j < kOut; ++j) {
        float sum = 0;
        for (std::int64_t k = 0; k < terms; ++k)
          sum = std::fma(floats(x)[r * terms + k], floats(w)[k * kOut + j], sum);
        y.set(r * kOut + j, sum);
      }
    Point p = check_exact(link, {x}, std::move(y).freeze(), kFloat, serial_for);
    EXPECT_TRUE(p.passed()) << terms << " " << cosine << ": " << p.failed << " failed, worst "
                            << p.worst_ratio << ", rms " << p.rms_ratio;
  }
}

class HonestArithmetic : public testing::TestWithParam<int> {
 protected:
  Named named = all_cases()[GetParam()];
  const Case& c = named.test;
  Contract contract = contract_of(c.link.output.site, DType::f32);
};

TEST_P(HonestArithmetic, InFloatPasses) {
  Point p = check_exact(c.link, c.inputs, honest_output(c), contract, serial_for);
  EXPECT_TRUE(p.passed()) << c.name << ": " << p.failed << " failed, worst " << p.worst_ratio;
  EXPECT_EQ(p.compared, numel(c.output));
}

// If the operation's own slack were not there, honest float arithmetic would be refused.
TEST_P(HonestArithmetic, NeedsItsSlack) {
  Array output = honest_output(c),
        tolerance_with = tolerances(c.link, c.inputs, c.output, contract);
  Array exact = compute(c.link, c.inputs, c.output, serial_for);
  bool beyond = false;
  for (std::int64_t i = 0; i < output.numel(); ++i)
    beyond = beyond || std::abs(output[i] - exact[i]) > tolerance(contract, exact[i], 0);
  EXPECT_EQ(beyond, named.needs_slack) << c.name;
}

// Nothing hides below a bound that is far wider than rounding: a change of 1e-4 of the output's
// size is seen.
TEST_P(HonestArithmetic, LeavesNoRoomForAVisibleError) {
  Array allowed = tolerances(c.link, c.inputs, c.output, contract);
  Array exact = compute(c.link, c.inputs, c.output, serial_for);
  double scale = 0, widest = 0;
  for (std::int64_t i = 0; i < exact.numel(); ++i) {
    if (std::isinf(exact[i])) continue;
    scale = std::max(scale, std::abs(exact[i]));
    widest = std::max(widest, allowed[i]);
  }
  EXPECT_LT(widest, 1e-4 * scale) << c.name;
}

INSTANTIATE_TEST_SUITE_P(Bounds, HonestArithmetic,
                         testing::Range(0, static_cast<int>(all_cases().size())),
                         [](const auto& info) { return all_cases()[info.param].test.name; });

}  // namespace
}  // namespace lenscpp
