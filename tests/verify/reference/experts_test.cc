// Which experts are chosen and how they are mixed: what the checks refuse, and at the edges.
#include <gtest/gtest.h>

#include <limits>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using namespace testing_links;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Array array_of(std::initializer_list<double> values, Shape shape, DType dtype = DType::f32) {
  MutableArray a(std::move(shape), dtype);
  std::int64_t i = 0;
  for (double value : values) a.set(i++, value);
  return std::move(a).freeze();
}

Point check(const Link& link, const Array& in, const Array& out, DType model = DType::f32) {
  return check_exact(link, {in}, out, contract_of(link.output.site, model), serial_for);
}
Link choose() {
  return {.op = Op::choose, .output = {Site::expert_indices}, .inputs = {{Site::expert_weights}}};
}
Link share(std::int64_t chosen) {
  return {.op = Op::share,
          .output = {Site::expert_shares},
          .inputs = {{Site::expert_weights}},
          .chosen = chosen};
}
Array indices(std::initializer_list<double> values) {
  auto n = static_cast<std::int64_t>(values.size());
  return array_of(values, {1, 1, n}, DType::i64);
}

const Array kRow = array_of({0.1, 0.3, 0.25, 0.05, 0.3}, {1, 1, 5});

TEST(Choose, TakesTheLikeliestFirstAndOfEqualOnesTheFirst) {
  EXPECT_TRUE(check(choose(), kRow, indices({1, 4, 2})).passed());
  for (auto wrong : {indices({4, 1, 2}), indices({1, 2, 4}), indices({1, 4, 0}), indices({1, 4, 4}),
                     indices({1, 4, 5}), indices({1, 4, -1})})
    EXPECT_FALSE(check(choose(), kRow, wrong).passed());
  EXPECT_TRUE(check(choose(), kRow, indices({1, 4, 2, 0, 3})).passed()) << "all of them";
}

TEST(Choose, OfANaNNothingIsChosen) {
  Array row = array_of({0.1, kNan, 0.25, 0.05, 0.3}, {1, 1, 5});
  for (double first : {0.0, 1.0, 2.0, 3.0, 4.0})
    EXPECT_FALSE(check(choose(), row, indices({first})).passed());
}

TEST(Share, IsOfTheChosenAloneAndExactlyZeroElsewhere) {
  auto shares = [](double second, double unchosen) {
    return array_of({unchosen, 0.3 / 0.6, second, 0, 0.3 / 0.6}, {1, 1, 5});
  };
  EXPECT_TRUE(check(share(2), kRow, shares(0, 0)).passed());
  EXPECT_FALSE(check(share(2), kRow, shares(0, 1e-38)).passed());
  EXPECT_FALSE(check(share(2), kRow, shares(1e-38, 0)).passed());
  EXPECT_FALSE(check(share(3), kRow, shares(0, 0)).passed()) << "one was left out";
  EXPECT_FALSE(check(share(2), kRow, kRow).passed()) << "not over their sum";
}

TEST(Share, OfOneIsOne) {
  EXPECT_TRUE(check(share(1), kRow, array_of({0, 1, 0, 0, 0}, {1, 1, 5})).passed());
  EXPECT_FALSE(check(share(1), kRow, array_of({0, 0, 0, 0, 1}, {1, 1, 5})).passed())
      << "of equal ones the first is chosen";
}

TEST(Share, OfAnEditedRowThatSumsToNothingIsRefused) {
  Array zeros = array_of({0, 0, 0}, {1, 1, 3}), infinite = array_of({1, kNan, 2}, {1, 1, 3});
  for (double value : {0.0, 0.5, kNan}) {
    EXPECT_FALSE(check(share(2), zeros, array_of({value, value, 0}, {1, 1, 3})).passed());
    EXPECT_FALSE(check(share(2), infinite, array_of({value, 0, value}, {1, 1, 3})).passed());
  }
}

TEST(Share, BoundsCancellationOfEditedWeights) {
  Array row = array_of({0.5, -0.49, 0.1}, {1, 1, 3});
  Contract c = contract_of(Site::expert_shares, DType::f32);
  Array allowed = tolerances(share(3), {row}, {1, 1, 3}, c);
  double size = 0x1p-24 * (3 * 1.09 / 0.11 + 3);  // slack and store
  EXPECT_NEAR(allowed[0] / (0.5 / 0.11), size, 1e-3 * size);
}

TEST(Experts, OfAnInfinityWithoutAShareNothingIsMixed) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  Array post = array_of({kInf, 2, 3, 4}, {1, 1, 2, 2}), shares = array_of({0, 0.5}, {1, 1, 2});
  Link link{.op = Op::multiply,
            .output = {Site::expert_mixed},
            .inputs = {{Site::expert_post}, {Site::expert_shares}}};
  Contract contract = contract_of(Site::expert_mixed, DType::f32);
  auto passes = [&](std::initializer_list<double> mixed) {
    return check_exact(link, {post, shares}, array_of(mixed, {1, 1, 2, 2}), contract, serial_for)
        .passed();
  };
  EXPECT_TRUE(passes({0, 0, 1.5, 2}));
  EXPECT_FALSE(passes({kNan, 0, 1.5, 2}));
  EXPECT_FALSE(passes({kInf, 0, 1.5, 2}));
  EXPECT_FALSE(passes({0, 1e-6, 1.5, 2}));
}

TEST(Experts, LinksThatDoNotFitAreRefused) {
  Contract c = contract_of(Site::expert_shares, DType::f32);
  for (std::int64_t chosen : {0, 6})
    EXPECT_THROW(check_exact(share(chosen), {kRow}, kRow, c, serial_for), std::invalid_argument);
  EXPECT_THROW(check(choose(), kRow, indices({1, 4, 2, 0, 3, 5})), std::invalid_argument);
  Link product{.op = Op::multiply,
               .output = {Site::expert_mixed},
               .inputs = {{Site::expert_post}, {Site::expert_shares}}};
  Array x = random_array({1, 2, 3, 4}, DType::f32, 1);
  for (Shape shape : {Shape{1, 2, 4}, Shape{2, 3}, Shape{1, 2, 3, 1}})
    EXPECT_THROW(check_exact(product, {x, random_array(shape, DType::f32, 2)}, x, c, serial_for),
                 std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
