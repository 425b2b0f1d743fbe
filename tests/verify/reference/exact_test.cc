// The comparison code: every way in which numbers can be wrong, and that each is refused.
#include "verify/reference/exact.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using namespace testing_links;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

// And one that has no inputs.
std::vector<Case> operations() {
  std::vector<Case> all{distances_case()};
  for (const Named& named : all_cases()) all.push_back(named.test);
  return all;
}

class EveryOperation : public testing::TestWithParam<int> {
 protected:
  Case c = operations()[GetParam()];
  Contract contract = contract_of(c.link.output.site, DType::f32);
  Array allowed = tolerances(c.link, c.inputs, c.output, contract);
  Array exact = compute(c.link, c.inputs, c.output, serial_for);

  // Checks the honest output with element `i` replaced.
  Point with(std::int64_t i, double value) {
    MutableArray changed(honest_output(c));
    changed.set(i, value);
    return check_exact(c.link, c.inputs, std::move(changed).freeze(), contract, serial_for);
  }
  // The last element is one of few rows that a careless loop would forget.
  std::int64_t last() const { return numel(c.output) - 1; }
};

TEST_P(EveryOperation, RefusesNaN) {
  for (std::int64_t i : {std::int64_t{0}, last()}) {
    Point p = with(i, kNan);
    EXPECT_EQ(p.failed, 1);
    EXPECT_EQ(p.worst_index, i);
    EXPECT_EQ(p.worst_ratio, kInf);
    EXPECT_FALSE(p.passed());
  }
}

TEST_P(EveryOperation, RefusesInfinityOfEitherSign) {
  EXPECT_EQ(with(last(), kInf).failed, 1);
  EXPECT_EQ(with(0, -kInf).failed, 1);
}

TEST_P(EveryOperation, RefusesHugeNumbers) {
  EXPECT_EQ(with(last(), 3e38).failed, 1);
  EXPECT_EQ(with(0, -3e38).failed, 1);
}

TEST_P(EveryOperation, RefusesTheWrongSign) {
  std::int64_t i = 0;
  while (!(std::abs(exact[i]) > 1e-3) || std::isinf(exact[i])) ++i;
  EXPECT_EQ(with(i, -exact[i]).failed, 1);
}

TEST_P(EveryOperation, SeesEightTimesTheBoundAtEveryElement) {
  for (std::int64_t i = 0; i < numel(c.output); ++i) {
    if (std::isinf(exact[i])) continue;
    // Where nothing at all is allowed, the smallest change must do.
    double step = std::max({8 * allowed[i], std::abs(exact[i]) * 1e-6, 1e-30});
    Point p = with(i, exact[i] + step);
    ASSERT_EQ(p.failed, 1) << c.name << " element " << i;
    ASSERT_EQ(p.worst_index, i);
    ASSERT_EQ(p.id, c.link.output);
  }
}

TEST_P(EveryOperation, AcceptsHalfOfTheBound) {
  for (std::int64_t i = 0; i < numel(c.output); i += 7) {
    if (std::isinf(exact[i]) || allowed[i] == 0) continue;
    float inside = static_cast<float>(exact[i] + 0.5 * allowed[i]);
    if (std::abs(inside - exact[i]) > allowed[i]) continue;  // no float lies between
    EXPECT_EQ(with(i, inside).failed, 0) << c.name << " element " << i;
  }
}

TEST_P(EveryOperation, ReportsTheTrueRatioOfTheWorstElement) {
  Point p = check_exact(c.link, c.inputs, honest_output(c), contract, serial_for);
  Array output = honest_output(c);
  double worst = 0;
  for (std::int64_t i = 0; i < output.numel(); ++i)
    if (output[i] != exact[i]) worst = std::max(worst, std::abs(output[i] - exact[i]) / allowed[i]);
  EXPECT_DOUBLE_EQ(p.worst_ratio, worst);
}

TEST_P(EveryOperation, RefusesInputsThatDoNotFit) {
  if (c.inputs.size() == 2) {
    EXPECT_THROW(
        check_exact(c.link, {c.inputs[0], Array()}, honest_output(c), contract, serial_for),
        std::invalid_argument);
  }
  EXPECT_THROW(check_exact(c.link, {Array()}, honest_output(c), contract, serial_for),
               std::exception);
  Array short_output = random_array({1, 1, 1}, DType::f32, 1);
  EXPECT_THROW(check_exact(c.link, {random_array({1, 2, 3}, DType::f32, 1)}, short_output, contract,
                           serial_for),
               std::exception);
}

INSTANTIATE_TEST_SUITE_P(Exact, EveryOperation,
                         testing::Range(0, static_cast<int>(operations().size())),
                         [](const auto& info) { return operations()[info.param].name; });

// An honest store overflows to the infinity of the right sign, and only that.
TEST(Point, PassesOnlyWhenEveryElementWasComparedAndNoneFailed) {
  Point p{.id = {Site::z}, .op = Op::mix, .compared = 6, .rms_ratio = kRmsLimit, .shape = {2, 3}};
  EXPECT_TRUE(p.passed());
  for (auto spoil :
       {+[](Point& q) { q.compared = 5; }, +[](Point& q) { q.failed = 1; },
        +[](Point& q) { q.residual = 1.1; }, +[](Point& q) { q.projected = 1; },
        +[](Point& q) { q.rms_ratio = 8.1; }, +[](Point& q) { q.rms_ratio = std::nan(""); },
        +[](Point& q) {
          q.compared = 0, q.shape = {0, 3};
        }}) {
    Point q = p;
    spoil(q);
    EXPECT_FALSE(q.passed());
  }
}

TEST(Exact, AcceptsAnHonestOverflowOfFloat16AndNothingElse) {
  Link link = add_case().link;
  Contract half = contract_of(Site::resid_mid, DType::f16);
  auto one = [](double x, DType dtype) {
    MutableArray a({1, 1, 1}, dtype);
    a.set(0, x);
    return std::move(a).freeze();
  };
  Array big = one(60000, DType::f16);
  EXPECT_TRUE(check_exact(link, {big, big}, one(kInf, DType::f16), half, serial_for).passed());
  EXPECT_FALSE(check_exact(link, {big, big}, one(-kInf, DType::f16), half, serial_for).passed());
  EXPECT_FALSE(check_exact(link, {big, one(1, DType::f16)}, one(kInf, DType::f16), half, serial_for)
                   .passed());
}

TEST(Exact, MaskedScoresAreExactlyMinusInfinityAndNoOthersAre) {
  Case c = scores_case();
  Contract contract = contract_of(Site::attn_scores, DType::f32);
  for (auto [index, value] : {std::pair<std::int64_t, double>{1, -1e30}, {1, 0.0}, {0, -kInf}}) {
    MutableArray changed(honest_output(c));
    changed.set(index, value);
    Point p = check_exact(c.link, c.inputs, std::move(changed).freeze(), contract, serial_for);
    EXPECT_EQ(p.failed, 1) << index << " " << value;
    EXPECT_EQ(p.hint.substr(0, 4), "mask") << p.hint;
  }
}

TEST(Exact, AProbabilityBeyondTheMaskIsRefusedHoweverSmall) {
  Case c = softmax_case();
  MutableArray changed(honest_output(c));
  changed.set(1, 1e-38);
  EXPECT_EQ(check_exact(c.link, c.inputs, std::move(changed).freeze(),
                        contract_of(Site::pattern, DType::f32), serial_for)
                .failed,
            1);
}

// Below the bound of every element, but together far from what float rounding makes: the RMS test.
TEST(Exact, ADistanceOfNothingIsExactlyNothing) {
  Case c = distances_case();
  Contract contract = contract_of(c.link.output.site, DType::f32);
  MutableArray changed(honest_output(c));
  changed.set(2, 0x1p-60);  // the first query, and the key that it stands at
  EXPECT_EQ(check_exact(c.link, {}, std::move(changed).freeze(), contract, serial_for).failed, 1);
}

TEST(Exact, ALowerPrecisionBelowEveryBoundIsRefusedByTheRmsTest) {
  constexpr std::int64_t in = 4096, out = 32;
  Array w = random_array({in, out}, DType::f32, 1), x = random_array({1, 8, in}, DType::f32, 2);
  Array b = MutableArray({out}, DType::f32).freeze();
  Link link{.op = Op::linear,
            .output = {Site::mlp_pre},
            .inputs = {{Site::ln2_normalized}},
            .weight = Matrix{.storage = w, .in = in, .out = out},
            .bias = Vector{.storage = b, .size = out}};
  Contract contract = contract_of(Site::mlp_pre, DType::f32);
  Array exact = compute(link, {x}, {1, 8, out}, serial_for),
        allowed = tolerances(link, {x}, {1, 8, out}, contract);
  MutableArray noisy({1, 8, out}, DType::f32);
  for (std::int64_t i = 0; i < exact.numel(); ++i)
    noisy.set(i, exact[i] + (i % 2 == 0 ? 0.9 : -0.9) * allowed[i]);
  Point p = check_exact(link, {x}, std::move(noisy).freeze(), contract, serial_for);
  EXPECT_EQ(p.failed, 0);
  EXPECT_GT(p.rms_ratio, kRmsLimit);
  EXPECT_FALSE(p.passed());
  EXPECT_NE(p.hint, "");
}

// The same where a single worse element hides what all others do.
TEST(Exact, TheRmsTestCountsElementsThatNothingIsSuspectedOf) {
  constexpr std::int64_t rows = 64, in = 128, out = 32;
  Link link{
      .op = Op::linear,
      .output = {Site::mlp_pre},
      .inputs = {{Site::ln2_normalized}},
      .weight = Matrix{.storage = random_array({in, out}, DType::f32, 1), .in = in, .out = out}};
  Array x = random_array({1, rows, in}, DType::f32, 2);
  Contract contract = contract_of(Site::mlp_pre, DType::f32);
  Array exact = compute(link, {x}, {1, rows, out}, serial_for),
        allowed = tolerances(link, {x}, {1, rows, out}, contract);
  MutableArray noisy({1, rows, out}, DType::f32);
  for (std::int64_t i = 0; i < exact.numel(); ++i)
    noisy.set(i, exact[i] + (i == 0 ? 0.95 : i % 2 == 0 ? 0.75 : -0.75) * allowed[i]);
  Point p = check_exact(link, {x}, std::move(noisy).freeze(), contract, serial_for);
  EXPECT_EQ(p.failed, 0);
  EXPECT_EQ(p.worst_index, 0);
  EXPECT_GT(p.rms_ratio, kRmsLimit);
}

TEST(Exact, ComparingNothingIsAFailure) {
  Point p{.id = {Site::q}, .op = Op::linear};
  EXPECT_FALSE(p.passed());
}

TEST(Exact, AWidenedToleranceIsTheBoundPlusTheExtra) {
  Case c = add_case();
  Contract contract = contract_of(Site::resid_mid, DType::f32);
  Array exact = compute(c.link, c.inputs, c.output, serial_for);
  MutableArray changed(honest_output(c)), extra(c.output, DType::f64);
  changed.set(3, exact[3] + 0.01);
  extra.set(3, 0.011);
  Array off = std::move(changed).freeze(), widening = std::move(extra).freeze();
  EXPECT_EQ(check_exact(c.link, c.inputs, off, contract, serial_for).failed, 1);
  EXPECT_EQ(check_exact(c.link, c.inputs, off, contract, serial_for, widening).failed, 0);
}

TEST(Exact, TheVerdictDoesNotDependOnHowWorkIsSplit) {
  Case c = linear_case();
  Contract contract = contract_of(Site::mlp_pre, DType::f32);
  ParallelFor backwards = [](std::int64_t n, const auto& body) {
    for (std::int64_t i = n; i-- > 0;) body(i, i + 1);
  };
  MutableArray changed(honest_output(c));
  changed.set(17, 1e3);
  changed.set(150, 1e3);
  Array output = std::move(changed).freeze();
  Point a = check_exact(c.link, c.inputs, output, contract, serial_for),
        b = check_exact(c.link, c.inputs, output, contract, backwards);
  EXPECT_EQ(a.worst_index, b.worst_index);
  EXPECT_EQ(a.worst_ratio, b.worst_ratio);
  EXPECT_EQ(a.failed, b.failed);
  EXPECT_EQ(a.compared, b.compared);
}

// Most elements are passed by a cheap bound, a row at a time; the evidence is as if none were.
TEST(Exact, TheWorstElementIsFoundByTheBoundItself) {
  constexpr std::int64_t rows = 37, in = 203, out = 517;
  for (bool outputs_are_rows : {false, true}) {
    Shape shape = outputs_are_rows ? Shape{out, in} : Shape{in, out};
    Link link{.op = Op::linear,
              .output = {Site::mlp_pre},
              .inputs = {{Site::ln2_normalized}},
              .weight = Matrix{.storage = random_array(shape, DType::f32, 1),
                               .in = in,
                               .out = out,
                               .outputs_are_rows = outputs_are_rows},
              .bias = Vector{.storage = random_array({out}, DType::f32, 2), .size = out}};
    std::vector<Array> inputs{random_array({1, rows, in}, DType::f32, 3)};
    Contract contract = contract_of(link.output.site, DType::f32);
    Array allowed = tolerances(link, inputs, {1, rows, out}, contract);
    Array exact = compute(link, inputs, {1, rows, out}, serial_for);
    Array noise = random_array({rows, out}, DType::f64, 4, 0.3);
    MutableArray output({1, rows, out}, DType::f32);
    for (std::int64_t i = 0; i < output.numel(); ++i)
      output.set(i, exact[i] + noise[i] * allowed[i]);
    Array device = std::move(output).freeze();
    Point expected{.id = link.output, .op = link.op};
    for (std::int64_t i = 0; i < device.numel(); ++i) {
      double ratio = std::abs(device[i] - exact[i]) / allowed[i];
      expected.failed += ratio > 1;
      if (ratio <= expected.worst_ratio) continue;
      expected.worst_ratio = ratio;
      expected.worst_index = i;
    }
    EXPECT_GT(expected.failed, 0);
    Point found = check_exact(link, inputs, device, contract, serial_for);
    EXPECT_EQ(found.compared, rows * out);
    EXPECT_EQ(found.failed, expected.failed);
    EXPECT_EQ(found.worst_index, expected.worst_index);
    EXPECT_NEAR(found.worst_ratio, expected.worst_ratio, 1e-9);
  }
}

// Attention longer than one block of queries, beside formulas of its own: values, bounds, mask, and
// that the worst element is found by the bound itself.
struct Attention {
  static constexpr std::int64_t kBatch = 2, kQueries = 141, kFirst = 9, kHeads = 3, kHead = 20;
  static constexpr std::int64_t kKeys = kQueries + kFirst;
  Array q = random_array({kBatch, kQueries, kHeads, kHead}, DType::f32, 1, 1, 0.3);
  Array k = random_array({kBatch, kKeys, kHeads, kHead}, DType::f32, 2);
  Link link{.op = Op::scores,
            .output = {Site::attn_scores},
            .inputs = {{Site::q}, {Site::keys}},
            .scalar = 4.5,
            .first_query = kFirst};
  Shape shape{kBatch, kHeads, kQueries, kKeys};
  Contract contract = contract_of(Site::attn_scores, DType::f32);

  // function(flat index, value or -inf, tolerance).
  template <class Function>
  void for_each(const Function& function) const {
    for (std::int64_t i = 0; i < numel(shape); ++i) {
      std::int64_t key = i % kKeys, query = i / kKeys % kQueries,
                   head = i / kKeys / kQueries % kHeads, batch = i / kKeys / kQueries / kHeads;
      double sum = 0, squares = 0;
      for (std::int64_t d = 0; d < kHead; ++d) {
        double x = q[((batch * kQueries + query) * kHeads + head) * kHead + d] *
                   k[((batch * kKeys + key) * kHeads + head) * kHead + d];
        sum += x;
        squares += x * x;
      }
      double s = sum / link.scalar;
      if (key > query + kFirst)
        function(i, -kInf, 0.0);
      else
        function(i, s,
                 tolerance(contract, s,
                           scores_slack(contract, kHead, std::sqrt(squares) / link.scalar, s)));
    }
  }
};

TEST(Exact, BoundsOfScoresAreTheFormulasOverAllBlocks) {
  Attention a;
  Array allowed = tolerances(a.link, {a.q, a.k}, a.shape, a.contract);
  Array exact = compute(a.link, {a.q, a.k}, a.shape, serial_for);
  a.for_each([&](std::int64_t i, double value, double bound) {
    ASSERT_NEAR(allowed[i], bound, 1e-9 * bound) << i;
    if (value == -kInf) {
      ASSERT_EQ(exact[i], -kInf) << i;
    } else {
      ASSERT_NEAR(exact[i], value, 1e-13) << i;
    }
  });
}

TEST(Exact, TheWorstScoreIsFoundByTheBoundItself) {
  Attention a;
  Array noise = random_array(a.shape, DType::f64, 4, 0.2);
  MutableArray made(a.shape, DType::f32);
  a.for_each([&](std::int64_t i, double value, double bound) {
    made.set(i, value == -kInf ? value : value + noise[i] * bound);
  });
  Array device = std::move(made).freeze();
  double worst = 0;
  std::int64_t index = 0;
  a.for_each([&](std::int64_t i, double value, double bound) {
    double ratio = value == -kInf ? 0 : std::abs(device[i] - value) / bound;
    if (ratio <= worst) return;
    worst = ratio;
    index = i;
  });
  Point p = check_exact(a.link, {a.q, a.k}, device, a.contract, serial_for);
  EXPECT_EQ(p.compared, numel(a.shape));
  EXPECT_EQ(p.worst_index, index);
  EXPECT_NEAR(p.worst_ratio, worst, 1e-6);
}

// A pattern that looks at every key, as an edited one may: nothing beyond the diagonal is skipped.
TEST(Exact, MixesEveryKeyThatAPatternLooksAt) {
  constexpr std::int64_t pos = 70, heads = 2, d = 5;
  Link link{.op = Op::mix, .output = {Site::z}, .inputs = {{Site::pattern}, {Site::v}}};
  for (std::int64_t last : {std::int64_t{0}, std::int64_t{31}, pos - 1}) {
    MutableArray p({1, heads, pos, pos}, DType::f32);
    Array noise = random_array({heads, pos, pos}, DType::f32, 5),
          v = random_array({1, pos, heads, d}, DType::f32, 6);
    for (std::int64_t i = 0; i < heads * pos; ++i)
      for (std::int64_t j = 0; j <= last; ++j) p.set(i * pos + j, noise[i * pos + j]);
    Array pattern = std::move(p).freeze();
    Array z = compute(link, {pattern, v}, {1, pos, heads, d}, serial_for);
    for (std::int64_t i = 0; i < z.numel(); ++i) {
      std::int64_t c = i % d, head = i / d % heads, query = i / d / heads;
      double sum = 0;
      for (std::int64_t j = 0; j < pos; ++j)
        sum += pattern[(head * pos + query) * pos + j] * v[(j * heads + head) * d + c];
      ASSERT_NEAR(z[i], sum, 1e-12) << i;
    }
  }
}

}  // namespace
}  // namespace lenscpp
