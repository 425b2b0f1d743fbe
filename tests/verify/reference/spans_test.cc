// Propagated bounds hold: perturbed inputs never move an output further than promised, and not much
// less.
#include "verify/reference/spans.h"

#include <gtest/gtest.h>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using namespace testing_links;

class Propagated : public testing::TestWithParam<int> {};

TEST_P(Propagated, BoundsEveryPerturbationAndIsReachedWithinAFactor) {
  Case c = all_cases()[GetParam()].test;
  constexpr double kSize = 1e-4;
  // All inputs at once, then each alone: the error of one must not hide behind another's.
  for (std::size_t alone = 0; alone <= c.inputs.size(); ++alone) {
    std::vector<Array> errors;
    for (std::size_t k = 0; k < c.inputs.size(); ++k) {
      const Array& input = c.inputs[k];
      bool moves = alone == c.inputs.size() || alone == k;
      MutableArray e(input.shape(), DType::f64);
      for (std::int64_t i = 0; i < e.numel(); ++i)
        e.set(i, std::isinf(input[i]) || !moves ? 0 : kSize * std::abs(input[i]));
      errors.push_back(std::move(e).freeze());
    }
    Array bound = propagate(c.link, c.inputs, errors, c.output);
    Array exact = compute(c.link, c.inputs, c.output, serial_for);
    double closest = 0;
    for (std::uint64_t seed = 0; seed < 8; ++seed) {
      std::mt19937_64 random(seed);
      std::vector<Array> moved;
      for (std::size_t k = 0; k < c.inputs.size(); ++k) {
        MutableArray m(c.inputs[k].to(DType::f64));
        // All one way, and at random: sums and differences both reach their worst.
        for (std::int64_t i = 0; i < m.numel(); ++i)
          if (errors[k][i] > 0)
            m.set(i, m.get(i) + errors[k][i] * (seed == 0 || random() % 2 == 0 ? 1 : -1));
        moved.push_back(std::move(m).freeze());
      }
      Array output = compute(c.link, moved, c.output, serial_for);
      for (std::int64_t i = 0; i < exact.numel(); ++i) {
        if (std::isinf(exact[i])) continue;
        double change = std::abs(output[i] - exact[i]);
        ASSERT_LE(change, bound[i] * (1 + 1e-9) + 1e-14) << c.name << " " << i;
        if (bound[i] > 0) closest = std::max(closest, change / bound[i]);
      }
    }
    EXPECT_GT(closest, 0.03) << c.name << ", input " << alone;
  }
}

INSTANTIATE_TEST_SUITE_P(Spans, Propagated, testing::Range(0, static_cast<int>(all_cases().size())),
                         [](const auto& info) { return all_cases()[info.param].test.name; });

TEST(Spans, NoErrorGoesInNoneComesOut) {
  Case c = linear_case();
  EXPECT_TRUE(propagate(c.link, c.inputs, {Array()}, c.output).empty());
}

TEST(Spans, EditsCannotStandInARecordedRun) {
  Link link{.op = Op::edit, .output = {Site::z}, .inputs = {{Site::z}}};
  Array x = random_array({1, 2, 2, 2}, DType::f32, 1);
  EXPECT_THROW(propagate(link, {x}, {x.to(DType::f64)}, {1, 2, 2, 2}), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
