// The error of the one polynomial, against the standard library's function.
#include "verify/reference/erfc.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace lenscpp {
namespace {

std::vector<double> erfc_of(const std::vector<double>& x) {
  std::vector<double> y(x.size());
  erfc(x, y);
  return y;
}

TEST(Erfc, IsWithin2ToTheMinus50Everywhere) {
  std::vector<double> x;
  for (double v = -8; v < 30; v += 0x1p-13 * 1.37) x.push_back(v);
  for (double v = 1e-320; v < 1e300; v *= 3) x.insert(x.end(), {v, -v});
  std::vector<double> y = erfc_of(x);
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_NEAR(y[i], std::erfc(x[i]), 0x1p-50) << "at " << x[i];
}

TEST(Erfc, FollowsTheTailToItsEnd) {
  std::vector<double> x;
  for (double v = 0; v < 25; v += 0.01) x.push_back(v);
  std::vector<double> y = erfc_of(x);
  for (std::size_t i = 0; i < x.size(); ++i)
    ASSERT_NEAR(y[i] / std::erfc(x[i]), 1, 1e-12) << "at " << x[i];
}

TEST(Erfc, KnowsInfinitiesAndNaN) {
  double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> y = erfc_of({infinity, -infinity, std::nan(""), 0.0, -0.0});
  EXPECT_EQ(y[0], 0);
  EXPECT_EQ(y[1], 2);
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_NEAR(y[3], 1, 0x1p-50);
  EXPECT_NEAR(y[4], 1, 0x1p-50);
}

}  // namespace
}  // namespace lenscpp
