// Operations whose values are known to the bit: one changed bit anywhere is found and named, NaN is
// refused even where it was copied faithfully, and zeros of either sign are equal.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using testing_links::random_array;

struct Copied {
  std::string name;
  Link link;
  std::vector<Array> inputs;
  Array output;  // as it should be
};

Array reordered(const Array& from, std::int64_t row, const std::vector<std::int64_t>& rows,
                Shape shape) {
  MutableArray to(std::move(shape), from.dtype());
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (std::int64_t j = 0; j < row; ++j)
      to.set(static_cast<std::int64_t>(r) * row + j, from[rows[r] * row + j]);
  return std::move(to).freeze();
}

std::vector<Copied> copies(DType dtype) {
  Array x = random_array({2, 5, 24}, dtype, 1), table = random_array({9, 24}, dtype, 2);
  Array base = random_array({2, 3, 2, 4}, dtype, 3), k = random_array({2, 4, 2, 4}, dtype, 4);
  Array ids = Array::of(std::span<const std::int64_t>(std::vector<std::int64_t>{8, 0, 3, 3}), {4});
  MutableArray joined({2, 7, 2, 4}, dtype);
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t i = 0; i < 7 * 8; ++i)
      joined.set(b * 56 + i, i < 24 ? base[b * 24 + i] : k[b * 32 + i - 24]);
  return {
      {"given", {.op = Op::given, .output = {Site::resid_pre}, .given = x}, {}, x},
      {"copy",
       {.op = Op::copy, .output = {Site::resid_pre}, .inputs = {{Site::resid_post}}},
       {x},
       x},
      {"copy to heads",
       {.op = Op::copy, .output = {Site::q_input}, .inputs = {{Site::resid_pre}}},
       {x},
       reordered(x, 24, {0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9},
                 {2, 5, 2, 24})},
      {"gather",
       {.op = Op::gather,
        .output = {Site::embed},
        .weight = Matrix{.storage = table, .in = 9, .out = 24},
        .given = ids},
       {},
       reordered(table, 24, {8, 0, 3, 3}, {1, 4, 24})},
      {"concat",
       {.op = Op::concat, .output = {Site::keys}, .inputs = {{Site::k}}, .given = base},
       {k},
       std::move(joined).freeze()},
  };
}

Point check(const Copied& c, const Array& output) {
  return check_exact(c.link, c.inputs, output, contract_of(c.link.output.site, output.dtype()),
                     serial_for);
}

class Copies : public testing::TestWithParam<DType> {};

TEST_P(Copies, PassAsTheyAre) {
  for (const Copied& c : copies(GetParam())) {
    Point p = check(c, c.output);
    EXPECT_TRUE(p.passed()) << c.name;
    EXPECT_EQ(p.compared, c.output.numel()) << c.name;
    EXPECT_EQ(p.worst_ratio, 0) << c.name;
  }
}

TEST_P(Copies, NameTheElementOfWhichOneBitChanged) {
  for (const Copied& c : copies(GetParam()))
    for (std::int64_t i = 0; i < c.output.numel(); ++i) {
      MutableArray changed(c.output);
      changed.bytes()[i * static_cast<std::int64_t>(size_of(GetParam()))] ^= std::byte{1};
      Point p = check(c, std::move(changed).freeze());
      ASSERT_EQ(p.failed, 1) << c.name;
      ASSERT_EQ(p.worst_index, i) << c.name;
      ASSERT_EQ(p.compared, c.output.numel()) << c.name;
    }
}

TEST_P(Copies, RefuseNaNEvenWhereItWasCopied) {
  for (double sign : {1.0, -1.0}) {
    MutableArray changed(random_array({2, 5, 24}, GetParam(), 1));
    changed.set(77, std::copysign(std::nan(""), sign));
    Array x = std::move(changed).freeze();
    Link link{.op = Op::copy, .output = {Site::resid_pre}, .inputs = {{Site::resid_post}}};
    Point p = check({"copy", link, {x}, x}, x);
    EXPECT_EQ(p.failed, 1);
    EXPECT_EQ(p.worst_index, 77);
  }
}

TEST_P(Copies, TakeZerosOfEitherSignForEqual) {
  MutableArray a({1, 1, 6}, GetParam()), b({1, 1, 6}, GetParam());
  a.set(2, 0.0);
  b.set(2, -0.0);
  Array plus = std::move(a).freeze(), minus = std::move(b).freeze();
  ASSERT_NE(std::memcmp(plus.bytes(), minus.bytes(), plus.nbytes()), 0);
  Link link{.op = Op::copy, .output = {Site::resid_pre}, .inputs = {{Site::resid_post}}};
  EXPECT_TRUE(check({"copy", link, {plus}, minus}, minus).passed());
}

INSTANTIATE_TEST_SUITE_P(DTypes, Copies,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace lenscpp
