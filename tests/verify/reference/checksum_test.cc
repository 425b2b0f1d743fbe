// Checks in O(size): that honest products pass without a second product, what is seen and how
// small, and that whatever is doubted is judged by the exact check.
#include "verify/reference/checksum.h"

#include <gtest/gtest.h>

#include <limits>

#include "tests/verify/reference/link_builder.h"
#include "verify/reference/ops.h"

namespace lenscpp {
namespace {

using namespace testing_links;

constexpr std::uint64_t kSeed = 20240607;

// A layer of a transformer, multiplied as an honest device would: float32 sums, one rounding at the
// store.
struct Product {
  static constexpr std::int64_t kRows = 40, kIn = 192, kOut = 320;
  DType dtype;
  Array x, w, b, y;
  Link link;
  Contract contract;

  explicit Product(DType type, std::uint64_t seed = 1, double offset = 0)
      : dtype(type),
        x(random_array({1, kRows, kIn}, type, seed, 1, offset)),
        w(random_array({kIn, kOut}, type, seed + 1, 0.05)),
        b(random_array({kOut}, type, seed + 2)),
        link{.op = Op::linear,
             .output = {Site::mlp_pre},
             .inputs = {{Site::ln2_normalized}},
             .weight = Matrix{.storage = w, .in = kIn, .out = kOut},
             .bias = Vector{.storage = b, .size = kOut}},
        contract(contract_of(Site::mlp_pre, type)) {
    MutableArray made({1, kRows, kOut}, type);
    auto multiply = [&](auto zero) {
      using T = decltype(zero);
      for (std::int64_t r = 0; r < kRows; ++r)
        for (std::int64_t j = 0; j < kOut; ++j) {
          T sum = static_cast<T>(b[j]);
          for (std::int64_t k = 0; k < kIn; ++k)
            sum += static_cast<T>(x[r * kIn + k]) * static_cast<T>(w[k * kOut + j]);
          made.set(r * kOut + j, sum);
        }
    };
    type == DType::f64 ? multiply(0.0) : multiply(0.0f);
    y = std::move(made).freeze();
  }
  double row_norm(std::int64_t row) const {
    double square = 0;
    for (std::int64_t j = 0; j < kOut; ++j) square += y[row * kOut + j] * y[row * kOut + j];
    return std::sqrt(square);
  }
  Residuals residuals(const Array& output, std::uint64_t seed = kSeed) const {
    Projections projections(seed);
    return project(link, x, output, contract, projections, serial_for);
  }
  Point check(const Array& output) const {
    Projections projections(kSeed);
    return check_checksum(link, {x}, output, contract, projections, serial_for);
  }
};

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16};

class Checksum : public testing::TestWithParam<DType> {};

TEST_P(Checksum, PassesHonestProductsWithoutRecomputingThem) {
  for (std::uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8})
    for (double offset : {0.0, 3.0}) {
      Product p(GetParam(), seed, offset);
      Point point = p.check(p.y);
      EXPECT_TRUE(point.passed());
      EXPECT_GT(point.compared, 0);
      EXPECT_GT(point.projected, 10 * point.compared);
      EXPECT_EQ(point.compared + point.projected, p.y.numel());
      EXPECT_GT(point.residual, 0);
      EXPECT_LT(point.residual, 0.9);
    }
}

TEST_P(Checksum, DoubtsWhatIsNotFinite) {
  Product p(GetParam());
  for (double value :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
        -std::numeric_limits<double>::infinity()}) {
    MutableArray y(p.y);
    y.set(7 * Product::kOut + 5, value);
    Array output = std::move(y).freeze();
    EXPECT_FALSE(p.residuals(output).clean());
    Point point = p.check(output);
    EXPECT_EQ(point.failed, 1);
    EXPECT_EQ(point.worst_index, 7 * Product::kOut + 5);
  }
}

// What sums of +-1 overlook: rows exchanged, columns exchanged, errors in pairs.
TEST_P(Checksum, DoubtsWhatLeavesSumsAsTheyWere) {
  Product p(GetParam());
  auto value = [&](std::int64_t r, std::int64_t j) { return p.y[r * Product::kOut + j]; };
  MutableArray columns(p.y), rows(p.y), pair(p.y);
  for (std::int64_t j = 0; j < Product::kOut; ++j) {
    rows.set(3 * Product::kOut + j, value(4, j));
    rows.set(4 * Product::kOut + j, value(3, j));
  }
  for (std::int64_t j = 0; j < Product::kOut; ++j) {
    std::int64_t i = 9 * Product::kOut + j;
    columns.set(i, value(9, j ^ 1));
    pair.set(i + 2 * Product::kOut, value(11, j) + (j % 2 == 0 ? 0.5 : -0.5));
  }
  for (MutableArray* changed : {&columns, &rows, &pair}) {
    Array output = std::move(*changed).freeze();
    EXPECT_FALSE(p.residuals(output).clean());
    EXPECT_FALSE(p.check(output).passed());
  }
}

TEST_P(Checksum, IsTheExactCheckWhereItDoubts) {
  Product p(GetParam());
  MutableArray y(p.y);
  y.set(20 * Product::kOut + 100, 3);
  Array output = std::move(y).freeze();
  Point doubted = p.check(output);
  Point exact = check_exact(p.link, {p.x}, output, p.contract, serial_for);
  EXPECT_EQ(doubted.failed, exact.failed);
  EXPECT_EQ(doubted.worst_index, 20 * Product::kOut + 100);
  EXPECT_EQ(doubted.worst_index, exact.worst_index);
  EXPECT_EQ(doubted.hint, exact.hint);
  EXPECT_EQ(doubted.compared, p.y.numel());
  EXPECT_EQ(doubted.projected, 0);
}

// Smaller than what projections see: found where it is sampled, and only there.
TEST_P(Checksum, ComparesSampledRowsExactly) {
  Product p(GetParam());
  std::int64_t last_column = Product::kOut - 1;
  Array bound = tolerances(p.link, {p.x}, p.y.shape(), p.contract);
  for (std::int64_t row : {std::int64_t{0}, std::int64_t{32}, Product::kRows - 1}) {
    std::int64_t i = row * Product::kOut + last_column;
    MutableArray y(p.y);
    y.set(i, p.y[i] + 3 * bound[i]);
    Array output = std::move(y).freeze();
    EXPECT_TRUE(p.residuals(output).clean());
    Point point = p.check(output);
    EXPECT_EQ(point.failed, 1);
    EXPECT_EQ(point.worst_index, i);
  }
}

// Of many rows more columns are sampled than are kept beside the weight.
TEST(ChecksumSample, GrowsWithTheRows) {
  constexpr std::int64_t kMany = 2048, kTerms = 32, kWidth = 256;
  Array x = random_array({1, kMany, kTerms}, DType::f32, 1),
        w = random_array({kTerms, kWidth}, DType::f32, 2),
        b = random_array({kWidth}, DType::f32, 3);
  Link link{.op = Op::linear,
            .output = {Site::mlp_pre},
            .inputs = {{Site::ln2_normalized}},
            .weight = Matrix{.storage = w, .in = kTerms, .out = kWidth},
            .bias = Vector{.storage = b, .size = kWidth}};
  Contract contract = contract_of(Site::mlp_pre, DType::f32);
  Array y = compute(link, {x}, {1, kMany, kWidth}, serial_for).to(DType::f32);
  Array bound = tolerances(link, {x}, y.shape(), contract);
  Projections projections(kSeed);
  Point honest = check_checksum(link, {x}, y, contract, projections, serial_for);
  EXPECT_TRUE(honest.passed());
  EXPECT_GT(honest.compared, 3 * 2 * 16);
  for (std::int64_t row : {std::int64_t{0}, kMany - 32, kMany - 1}) {
    std::int64_t i = row * kWidth + kWidth - 1 - 20;  // beyond the sixteen last
    MutableArray changed(y);
    changed.set(i, y[i] + 3 * bound[i]);
    Array output = std::move(changed).freeze();
    EXPECT_TRUE(project(link, x, output, contract, projections, serial_for).clean());
    EXPECT_EQ(check_checksum(link, {x}, output, contract, projections, serial_for).worst_index, i);
  }
}

// Columns are kept as they were when they were copied: of the weight's memory, of its own bias.
TEST(Projections, KeepAFewColumnsOfEveryWeight) {
  Product p(DType::bf16);
  Projections projections(kSeed);
  const SomeColumns& some = projections.columns(p.link, {{16, 3}, {Product::kOut - 2, 2}});
  ASSERT_EQ(some.weight.out, 5);
  for (auto [at, column] : {std::pair<std::int64_t, std::int64_t>{0, 16},
                            {2, 18},
                            {3, Product::kOut - 2},
                            {4, Product::kOut - 1}}) {
    for (std::int64_t k = 0; k < Product::kIn; ++k)
      EXPECT_EQ(some.weight.storage[at * Product::kIn + k], p.w[k * Product::kOut + column]);
    EXPECT_EQ(some.bias->storage[at], p.b[column]);
  }
  EXPECT_EQ(&projections.columns(p.link, {{0, 1}}), &some);
  Link other = p.link;
  other.weight->first_output = 1;
  other.weight->out = Product::kOut - 1;
  EXPECT_EQ(projections.columns(other, {{0, 1}}).weight.storage[0], p.w[1]);
}

INSTANTIATE_TEST_SUITE_P(DTypes, Checksum, testing::ValuesIn(kDTypes),
                         [](const auto& info) { return std::string(name_of(info.param)); });

// The figures of numerics.md, part C: what must be seen at 99 % of places.
struct Sensitivity {
  DType dtype;
  double element, row;  // of the row's norm
};
class ChecksumSensitivity : public testing::TestWithParam<Sensitivity> {};

TEST_P(ChecksumSensitivity, OneElement) {
  auto [dtype, element, row] = GetParam();
  Product p(dtype);
  int seen = 0, tried = 400;
  for (int n = 0; n < tried; ++n) {
    std::int64_t r = n * 7 % Product::kRows, i = r * Product::kOut + n * 131 % Product::kOut;
    MutableArray y(p.y);
    y.set(i, p.y[i] + (n % 2 == 0 ? 1 : -1) * element * p.row_norm(r));
    seen += !p.residuals(std::move(y).freeze(), kSeed + n).clean();
  }
  EXPECT_GE(seen, 0.99 * tried);
}

TEST_P(ChecksumSensitivity, ADenseRow) {
  auto [dtype, element, row] = GetParam();
  Product p(dtype);
  int seen = 0, tried = 400;
  for (int n = 0; n < tried; ++n) {
    std::int64_t r = n * 7 % Product::kRows;
    Array noise = random_array({Product::kOut}, DType::f64, 1000 + n);
    double norm = 0;
    for (std::int64_t j = 0; j < Product::kOut; ++j) norm += noise[j] * noise[j];
    MutableArray y(p.y);
    for (std::int64_t j = 0; j < Product::kOut; ++j) {
      std::int64_t i = r * Product::kOut + j;
      y.set(i, p.y[i] + row * p.row_norm(r) * noise[j] / std::sqrt(norm));
    }
    seen += !p.residuals(std::move(y).freeze(), kSeed + n).clean();
  }
  EXPECT_GE(seen, 0.99 * tried);
}

INSTANTIATE_TEST_SUITE_P(DTypes, ChecksumSensitivity,
                         testing::Values(Sensitivity{DType::f32, 3e-5, 1e-4},
                                         Sensitivity{DType::bf16, 4e-2, 4e-2}),
                         [](const auto& info) { return std::string(name_of(info.param.dtype)); });

TEST(Checksum, ItsOwnLimitsDecide) {
  EXPECT_TRUE((Residuals{.rows = 300, .worst = 1, .rms = 0.6}).clean());
  EXPECT_FALSE((Residuals{.rows = 300, .worst = 0, .rms = 0.61}).clean());
  EXPECT_FALSE((Residuals{.rows = 0, .worst = 0, .rms = 0}).clean());
  EXPECT_FALSE((Residuals{.rows = 3, .worst = 1.01, .rms = 0}).clean());
  EXPECT_FALSE((Residuals{.rows = 3, .worst = std::nan(""), .rms = 0}).clean());
  EXPECT_TRUE((Residuals{.rows = 1, .worst = 0, .rms = 1}).clean()) << "by chance";
  EXPECT_FALSE((Residuals{.rows = 1, .worst = 0, .rms = 1.5}).clean());
  EXPECT_FALSE((Residuals{.rows = 3, .worst = 0, .rms = std::nan("")}).clean());
}

// Sums carried in bfloat16 by parts: no element is beyond the bound by much, all of them a little.
TEST(Checksum, SeesAChangeOfPrecisionInTheRmsOfTheResiduals) {
  Product p(DType::bf16, 1, 1);
  MutableArray split({1, Product::kRows, Product::kOut}, DType::bf16);
  for (std::int64_t r = 0; r < Product::kRows; ++r)
    for (std::int64_t j = 0; j < Product::kOut; ++j) {
      double sum = p.b[j];
      for (std::int64_t part = 0; part < 4; ++part) {
        float partial = 0;
        for (std::int64_t k = part * Product::kIn / 4; k < (part + 1) * Product::kIn / 4; ++k)
          partial += static_cast<float>(p.x[r * Product::kIn + k] * p.w[k * Product::kOut + j]);
        sum = round_to(DType::bf16, sum + round_to(DType::bf16, partial));
      }
      split.set(r * Product::kOut + j, sum);
    }
  EXPECT_LE(p.residuals(p.y).rms, 0.55);
  EXPECT_FALSE(p.residuals(std::move(split).freeze()).clean());
}

// Operands rounded to 11 bits: doubted unless declared, and nothing coarser passes for it.
TEST(Checksum, AllowsTheRoundingOfOperandsThatIsDeclared) {
  Product p(DType::f32);
  auto rounded_product = [&](int bits) {
    auto rounded = [&](double value) {
      int exponent;
      double fraction = std::frexp(value, &exponent);
      return std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits);
    };
    MutableArray y({1, Product::kRows, Product::kOut}, DType::f32);
    for (std::int64_t r = 0; r < Product::kRows; ++r)
      for (std::int64_t j = 0; j < Product::kOut; ++j) {
        double sum = p.b[j];
        for (std::int64_t k = 0; k < Product::kIn; ++k)
          sum += rounded(p.x[r * Product::kIn + k]) * rounded(p.w[k * Product::kOut + j]);
        y.set(r * Product::kOut + j, sum);
      }
    return std::move(y).freeze();
  };
  Array tf32 = rounded_product(11), coarse = rounded_product(8);
  EXPECT_FALSE(p.residuals(tf32).clean());
  p.contract = contract_of(Site::mlp_pre, DType::f32, MatmulPrecision::tf32);
  EXPECT_TRUE(p.residuals(tf32).clean());
  EXPECT_TRUE(p.check(tf32).passed());
  EXPECT_TRUE(p.residuals(p.y).clean());
  EXPECT_FALSE(p.residuals(coarse).clean());
  EXPECT_FALSE(p.check(coarse).passed());
}

TEST(Projections, AreTheWeightTimesTheirRandomVectors) {
  Product p(DType::f32);
  Projections projections(kSeed);
  const Projection& q = projections.of(p.link, 1, serial_for);
  ASSERT_EQ(q.R.rows(), Product::kOut);
  EXPECT_GE(q.R.cwiseAbs().minCoeff(), 0.5);
  EXPECT_LT(q.R.cwiseAbs().maxCoeff(), 1.5);
  for (std::int64_t k = 0; k < Product::kIn; ++k)
    for (Index n = 0; n < 4; ++n) {
      double sum = 0;
      for (std::int64_t j = 0; j < Product::kOut; ++j)
        sum += p.w[k * Product::kOut + j] * q.R(j, n);
      ASSERT_NEAR(q.P(k, n), sum, 1e-12);
    }
  EXPECT_EQ(&projections.of(p.link, 1, serial_for), &q) << "computed once";
}

TEST(Projections, OfEachLayerAreTheirOwn) {
  Product p(DType::f32);
  Link other = p.link;
  other.output.layer += 1;
  Projections one(kSeed), two(kSeed);
  EXPECT_NE(one.of(p.link, 1, serial_for).R, two.of(other, 1, serial_for).R);
}

TEST(Projections, DependOnTheirSeed) {
  Product p(DType::f32);
  Projections a(kSeed), b(kSeed + 1);
  EXPECT_NE(a.of(p.link, 1, serial_for).R, b.of(p.link, 1, serial_for).R);
  EXPECT_EQ(Projections::secret_seed(), Projections::secret_seed());
}

// Weights that act a head at a time.
class ChecksumOfHeads : public testing::TestWithParam<int> {
 protected:
  Case c = GetParam() == 0 ? head_linear_case() : head_result_case();
  Contract contract = contract_of(c.link.output.site, DType::f32);
  Projections projections{kSeed};
};

TEST_P(ChecksumOfHeads, PassHonestOnesAndSeeOneHeadThatIsWrong) {
  Array y = honest_output(c);
  Residuals honest = project(c.link, c.inputs[0], y, contract, projections, serial_for);
  EXPECT_TRUE(honest.clean());
  EXPECT_EQ(honest.rows, 4 * 3);  // positions, heads
  EXPECT_TRUE(check_checksum(c.link, c.inputs, y, contract, projections, serial_for).passed());
  std::int64_t width = c.output.back();
  for (std::int64_t row = 0; row < 12; ++row) {
    MutableArray wrong(y);
    for (std::int64_t j = 0; j < width; ++j) wrong.set(row * width + j, 0.999 * y[row * width + j]);
    Array output = std::move(wrong).freeze();
    EXPECT_FALSE(project(c.link, c.inputs[0], output, contract, projections, serial_for).clean());
    EXPECT_FALSE(
        check_checksum(c.link, c.inputs, output, contract, projections, serial_for).passed());
  }
}
INSTANTIATE_TEST_SUITE_P(Forms, ChecksumOfHeads, testing::Values(0, 1));

TEST(Checksum, TakesAModelOfOneHead) {
  constexpr std::int64_t pos = 5, d = 16, out = 96;
  Link link{
      .op = Op::head_result,
      .output = {Site::result},
      .inputs = {{Site::z}},
      .weight = Matrix{.storage = random_array({d, out}, DType::f32, 7), .in = d, .out = out}};
  Array z = random_array({1, pos, 1, d}, DType::f32, 8);
  Array y = compute(link, {z}, {1, pos, 1, out}, serial_for).to(DType::f32);
  Contract contract = contract_of(Site::result, DType::f32);
  Projections projections(kSeed);
  Point point = check_checksum(link, {z}, y, contract, projections, serial_for);
  EXPECT_TRUE(point.passed());
  EXPECT_GT(point.projected, 0);
  MutableArray wrong(y);
  wrong.set(3 * out, y[3 * out] + 1);
  EXPECT_FALSE(
      check_checksum(link, {z}, std::move(wrong).freeze(), contract, projections, serial_for)
          .passed());
}

TEST(Checksum, LeavesOtherOperationsToTheExactCheck) {
  Projections projections(kSeed);
  for (const Named& named : all_cases()) {
    const Case& c = named.test;
    Contract contract = contract_of(c.link.output.site, DType::f32);
    Point point =
        check_checksum(c.link, c.inputs, honest_output(c), contract, projections, serial_for);
    EXPECT_TRUE(point.passed()) << c.name;
    bool product =
        c.link.op == Op::linear || c.link.op == Op::head_linear || c.link.op == Op::head_result;
    if (!product) {
      EXPECT_EQ(point.compared, numel(c.output)) << c.name;
    }
  }
}

TEST(Checksum, RefusesShapesThatDoNotFit) {
  Product p(DType::f32);
  Projections projections(kSeed);
  Array narrow = random_array({1, Product::kRows, Product::kIn - 1}, DType::f32, 1);
  EXPECT_THROW(project(p.link, narrow, p.y, p.contract, projections, serial_for),
               std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
