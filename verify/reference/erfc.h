// The complementary error function of many numbers at once: the standard library's is a call an
// element.
#pragma once

#include <span>

namespace lenscpp {

/// erfc of each of `x`, to 2^-50 absolutely. NaN stays NaN.
void erfc(std::span<const double> x, std::span<double> out);

}  // namespace lenscpp
