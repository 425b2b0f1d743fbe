// Packed products against loops, at sizes that leave parts of tiles over, and the lower bound of
// sums of squares.
#include "verify/reference/multiply.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using testing_links::random_array;

struct Operands {
  Index rows, terms, columns;
  Array x = random_array({rows, terms}, DType::f32, 1);
  Array w = random_array({terms, columns}, DType::f32, 2);
  LeftRows<double> left = pack_runs<Side::left>(x, 0, terms, rows, terms);
  RightColumns<double> right = pack_across<Side::right>(w, 0, columns, columns, terms);

  double sum(Index r, Index j, Index terms_wanted, double power = 1) const {
    double sum = 0;
    for (Index k = 0; k < terms_wanted; ++k)
      sum += std::pow(x[r * terms + k], power) * std::pow(w[k * columns + j], power);
    return sum;
  }
};

// Rows, terms and columns about the edges of tiles and of what is widened at a time.
const Operands kShapes[] = {{1, 1, 1},   {3, 7, 5},     {8, 64, 16},
                            {9, 65, 17}, {17, 130, 33}, {40, 203, 100}};

TEST(Multiply, IsTheProductWhateverIsLeftOver) {
  for (const Operands& o : kShapes) {
    Mat out(o.rows, o.columns);
    multiply(o.left, o.right, out);
    for (Index r = 0; r < o.rows; ++r)
      for (Index j = 0; j < o.columns; ++j) ASSERT_NEAR(out(r, j), o.sum(r, j, o.terms), 1e-12);
  }
}

TEST(Multiply, ReadsRunsAcrossAndAlongAlike) {
  for (const Operands& o : kShapes) {
    auto across = pack_across<Side::left>(o.w, 0, o.columns, o.columns, o.terms);
    for (Index j = 0; j < o.columns; ++j)
      for (Index k = 0; k < o.terms; ++k) {
        ASSERT_EQ(across.run(j)[k], o.w[k * o.columns + j]);
        ASSERT_EQ(o.right.run(j)[k], o.w[k * o.columns + j]);
      }
    for (Index r = 0; r < o.rows; ++r)
      for (Index k = 0; k < o.terms; ++k) ASSERT_EQ(o.left.run(r)[k], o.x[r * o.terms + k]);
  }
}

TEST(Multiply, StopsWhereItIsTold) {
  Operands o{20, 50, 40};
  std::vector<Extent> extents;
  for (Index t = 0; t < o.left.groups(); ++t)
    extents.push_back({10 + 5 * t, std::min(16 * t, o.columns)});
  Mat out = Mat::Constant(o.rows, o.columns, 7);
  multiply(o.left, o.right, out, extents);
  for (Index r = 0; r < o.rows; ++r) {
    Extent wanted = extents[static_cast<std::size_t>(r / kTileRows)];
    for (Index j = 0; j < wanted.columns; ++j)
      ASSERT_NEAR(out(r, j), o.sum(r, j, wanted.terms), 1e-12);
  }
  EXPECT_EQ(out(0, 0), 7) << "no column of the first tile is wanted";
}

TEST(Multiply, KnowsTheSquaresOfRuns) {
  for (const Operands& o : kShapes) {
    Eigen::VectorXd squares = o.left.squared_norms();
    ASSERT_EQ(squares.size(), o.rows);
    for (Index r = 0; r < o.rows; ++r) ASSERT_NEAR(squares[r], o.left.run(r).square().sum(), 1e-12);
  }
}

// Float32 may round up at every step: the bound must hold all the same, and be near where all terms
// are in it.
TEST(Multiply, BoundsSumsOfSquaresFromBelow) {
  for (double scale : {1.0, 1e-8, 1e-12, 1e-21, 1e-30, 1e15, 1e30})
    for (Index terms : {12, 64, 128, 129, 768}) {
      Operands o{16, terms, 32};
      auto scaled = [&](const auto& x) { return x * scale; };
      auto left = o.left.map(scaled);
      RowMajor<float> some(o.rows, o.columns);
      multiply(some_squares(left), some_squares(o.right), some);
      for (Index r = 0; r < o.rows; ++r)
        for (Index j = 0; j < o.columns; ++j) {
          double bound = least_sum(terms) * some(r, j), sum = scale * scale * o.sum(r, j, terms, 2);
          if (std::isinf(bound)) continue;  // beyond float32: what it bounds is looked at closely
          ASSERT_LE(bound, sum) << scale << " " << terms;
          if (scale == 1) {
            ASSERT_GE(bound, (terms > 128 ? 0.02 : 1 - 1e-4) * sum);
          }
        }
    }
  EXPECT_EQ(least_sum(Index{1} << 40), 0);
}

}  // namespace
}  // namespace lenscpp
