// TF32: refused where it was not declared, allowed to products alone where it was, and nothing
// coarser or otherwise wrong with it.
#include <gtest/gtest.h>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using namespace testing_links;

const Contract kIeee = contract_of(Site::q, DType::f32);
const Contract kTf32 = contract_of(Site::q, DType::f32, MatmulPrecision::tf32);

bool is_product(Op op) {
  return op == Op::linear || op == Op::head_linear || op == Op::head_result || op == Op::scores ||
         op == Op::mix;
}

// To `bits` significant bits, to nearest.
Array rounded(const Array& x, int bits) {
  MutableArray result(x);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    int exponent = 0;
    double fraction = std::frexp(x[i], &exponent);
    result.set(i, std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits));
  }
  return std::move(result).freeze();
}

// What a device makes of the link that rounds the operands of its products first.
Array of_rounded_operands(const Case& c, int bits) {
  Link link = c.link;
  if (link.weight) link.weight->storage = rounded(link.weight->storage, bits);
  std::vector<Array> inputs;
  for (const Array& x : c.inputs) inputs.push_back(rounded(x, bits));
  return compute(link, inputs, c.output, serial_for).to(DType::f32);
}

Point check(const Case& c, const Array& output, const Contract& contract) {
  return check_exact(c.link, c.inputs, output, contract, serial_for);
}

// Values as a checkpoint's are: all signs and sizes, so that roundings of operands do not cancel.
Case generic_linear() {
  constexpr std::int64_t rows = 16, in = 768, out = 96;
  Array w = random_array({in, out}, DType::f32, 31), b = random_array({out}, DType::f32, 32);
  return {"generic_linear",
          {.op = Op::linear,
           .output = {Site::mlp_pre},
           .inputs = {{Site::ln2_normalized}},
           .weight = Matrix{.storage = w, .in = in, .out = out},
           .bias = Vector{.storage = b, .size = out}},
          {random_array({1, rows, in}, DType::f32, 33)},
          {1, rows, out},
          {}};
}
// Scores near each other, so that a row of the pattern is spread over many keys.
Case diffuse_mix() {
  constexpr std::int64_t pos = 64, heads = 3, d = 16;
  MutableArray p({1, heads, pos, pos}, DType::f32);
  Array noise = random_array({heads, pos, pos}, DType::f32, 34, 0.5);
  for (std::int64_t i = 0; i < heads * pos; ++i) {
    double sum = 0;
    for (std::int64_t j = 0; j <= i % pos; ++j) sum += std::exp(noise[i * pos + j]);
    for (std::int64_t j = 0; j <= i % pos; ++j)
      p.set(i * pos + j, std::exp(noise[i * pos + j]) / sum);
  }
  return {"diffuse_mix",
          {.op = Op::mix, .output = {Site::z}, .inputs = {{Site::pattern}, {Site::v}}},
          {std::move(p).freeze(), random_array({1, pos, heads, d}, DType::f32, 35)},
          {1, pos, heads, d},
          {}};
}

std::vector<Case> products() {
  std::vector<Case> cases{generic_linear(), diffuse_mix()};
  for (const Named& named : all_cases())
    if (is_product(named.test.link.op)) cases.push_back(named.test);
  return cases;
}

class DeclaredPrecision : public testing::TestWithParam<int> {
 protected:
  Case c = products()[static_cast<std::size_t>(GetParam())];
};
INSTANTIATE_TEST_SUITE_P(Products, DeclaredPrecision,
                         testing::Range(0, static_cast<int>(products().size())),
                         [](const auto& info) { return products()[info.param].name; });

TEST_P(DeclaredPrecision, Tf32IsRefusedUnlessDeclared) {
  Point p = check(c, of_rounded_operands(c, 11), kIeee);
  EXPECT_FALSE(p.passed());
  EXPECT_EQ(p.hint.substr(0, kTf32Hint.size()), kTf32Hint) << p.hint;
}

TEST_P(DeclaredPrecision, Tf32PassesWhereItIs) {
  Point p = check(c, of_rounded_operands(c, 11), kTf32);
  EXPECT_TRUE(p.passed()) << p.failed << " failed, worst " << p.worst_ratio << ", rms "
                          << p.rms_ratio;
  EXPECT_GT(p.rms_ratio, 1) << "the test of precision sees nothing";
}

TEST_P(DeclaredPrecision, ADeviceThatDoesNotUseThePermissionPassesToo) {
  EXPECT_TRUE(
      check(c, compute(c.link, c.inputs, c.output, serial_for).to(DType::f32), kTf32).passed());
}

TEST_P(DeclaredPrecision, EightBitsAreRefusedAllTheSame) {
  Point p = check(c, of_rounded_operands(c, 8), kTf32);
  EXPECT_FALSE(p.passed()) << "worst " << p.worst_ratio << ", rms " << p.rms_ratio;
}

TEST_P(DeclaredPrecision, OneElementBeyondTheWiderBoundIsSeen) {
  Array output = of_rounded_operands(c, 11),
        allowed = tolerances(c.link, c.inputs, c.output, kTf32);
  for (std::int64_t i = 0; i < output.numel(); i += 7) {
    if (std::isinf(output[i])) continue;
    MutableArray changed(output);
    changed.set(i, output[i] + 3 * allowed[i]);
    Point p = check(c, std::move(changed).freeze(), kTf32);
    EXPECT_GE(p.failed, 1) << i;
  }
}

TEST_P(DeclaredPrecision, TheBoundIsWidenedByTheRoundingOfBothOperands) {
  Array plain = tolerances(c.link, c.inputs, c.output, kIeee);
  Array wide = tolerances(c.link, c.inputs, c.output, kTf32);
  Array exact = compute(c.link, c.inputs, c.output, serial_for);
  for (std::int64_t i = 0; i < wide.numel(); ++i) {
    if (std::isinf(exact[i])) {
      EXPECT_EQ(wide[i], 0) << "the mask is exact, whatever was declared";
    } else if (!c.link.bias) {  // ||x|| ||w|| is at least |x . w|
      EXPECT_GE(wide[i] - plain[i], 0x1p-10 * std::abs(exact[i]));
    } else {
      EXPECT_GT(wide[i], plain[i]);
    }
  }
}

TEST(DeclaredPrecisionElsewhere, ChangesNothing) {
  int seen = 0;
  for (const Named& named : all_cases()) {
    const Case& c = named.test;
    if (is_product(c.link.op)) continue;
    seen += 1;
    Array plain = tolerances(c.link, c.inputs, c.output, kIeee);
    Array declared = tolerances(c.link, c.inputs, c.output, kTf32);
    for (std::int64_t i = 0; i < plain.numel(); ++i) EXPECT_EQ(plain[i], declared[i]) << c.name;
  }
  EXPECT_EQ(seen, 22);
}

TEST(DeclaredPrecisionElsewhere, OtherDtypesKnowNone) {
  for (DType dtype : {DType::f64, DType::bf16, DType::f16})
    EXPECT_EQ(contract_of(Site::q, dtype, MatmulPrecision::tf32).u_x, 0);
  EXPECT_EQ(kTf32.u_x, 0x1p-11);
  EXPECT_EQ(kIeee.u_x, 0);
}

}  // namespace
}  // namespace lenscpp
