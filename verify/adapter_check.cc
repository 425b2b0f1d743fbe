// Merged weights against base, factors and magnitudes: products by Eigen, a block of outputs at a
// time. Shares no arithmetic with hooks/checkpoint/adapters.
#include "verify/adapter_check.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace lenscpp {
namespace {

using Matrix64 = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr double kRoundoff = 0x1p-53;
constexpr Eigen::Index kBlock = 64;  // outputs at a time

Matrix64 widened(const Array& array) {
  Matrix64 result(array.size(0), array.size(1));
  array.widen(0, {result.data(), static_cast<std::size_t>(result.size())});
  return result;
}

[[noreturn]] void refuse(const MergedTensor& m, std::int64_t index, double expected) {
  throw std::runtime_error(
      fmt::format("[adapter] merged {}: element {} is {:.9g}, but checkpoint and adapter make it "
                  "{:.9g} in float64. The weights that were merged are not the model's: report it, "
                  "and load what peft's merge_and_unload saves.",
                  m.name, index, m.result[index], expected));
}

// Numbers below the normal ones are further apart than the relative roundoff says.
double bound(const MergedTensor& m, double expected, double slack) {
  DType dtype = m.result.dtype();
  return unit_roundoff(dtype) * std::max(std::abs(expected), smallest_normal(dtype)) +
         (1 + unit_roundoff(dtype)) * slack;
}

// Outputs [first, first + sums.rows()) of base + delta, and of the magnitudes behind each sum.
struct Outputs {
  Matrix64 sums, sizes;
};
class Expected {
 public:
  explicit Expected(const MergedTensor& m)
      : m_(m),
        A_(widened(m.A)),
        B_(widened(m.B)),
        scale_(m.rank_stabilized ? m.alpha / std::sqrt(m.rank) : m.alpha / m.rank) {}

  Eigen::Index outputs() const { return B_.rows(); }
  Eigen::Index inputs() const { return A_.cols(); }
  std::int64_t index(Eigen::Index out, Eigen::Index in) const {
    return m_.in_out ? in * outputs() + out : out * inputs() + in;
  }

  Outputs block(Eigen::Index first, Eigen::Index count) const {
    Matrix64 base(count, inputs());
    for (Eigen::Index o = 0; o < count; ++o) read_base(first + o, base, o);
    auto B = B_.middleRows(first, count);
    return {base + scale_ * (B * A_),
            base.cwiseAbs() + std::abs(scale_) * (B.cwiseAbs() * A_.cwiseAbs())};
  }

  void check(Eigen::Index first, Eigen::Index count) const {
    Outputs w = block(first, count);
    double roundings = kRoundoff * static_cast<double>(A_.rows() + 4);
    for (Eigen::Index o = 0; o < count; ++o) {
      double factor = 1, relative = 0;
      if (!m_.magnitude.empty()) {
        double norm = w.sums.row(o).norm();
        factor = m_.magnitude[first + o] / norm;
        relative = roundings * w.sizes.row(o).norm() / norm +
                   kRoundoff * static_cast<double>(inputs() + 4);
      }
      for (Eigen::Index i = 0; i < inputs(); ++i) {
        double expected = factor * w.sums(o, i);
        double slack =
            2 * (std::abs(factor) * roundings * w.sizes(o, i) + relative * std::abs(expected));
        std::int64_t at = index(first + o, i);
        if (!(std::abs(m_.result[at] - expected) <= bound(m_, expected, slack)))
          refuse(m_, at, expected);
      }
    }
  }

 private:
  void read_base(Eigen::Index output, Matrix64& base, Eigen::Index row) const {
    if (!m_.in_out) {
      m_.base.widen(output * inputs(), {base.row(row).data(), static_cast<std::size_t>(inputs())});
      return;
    }
    for (Eigen::Index i = 0; i < inputs(); ++i) base(row, i) = m_.base[index(output, i)];
  }

  const MergedTensor& m_;
  Matrix64 A_, B_;  // [rank, in], [out, rank]
  double scale_;
};

void check_replaced(const MergedTensor& m) {
  for (std::int64_t i = 0; i < m.result.numel(); ++i)
    if (!(std::abs(m.result[i] - m.replacement[i]) <= bound(m, m.replacement[i], 0)))
      refuse(m, i, m.replacement[i]);
}

}  // namespace

void check_merged(const MergedTensor& m, const ParallelFor& parallel) {
  const Shape& shape = m.replacement.empty() ? m.base.shape() : m.replacement.shape();
  if (m.result.shape() != shape || m.result.empty())
    throw std::runtime_error("[adapter] merged " + m.name + " has shape " +
                             to_string(m.result.shape()) + ", needed: " + to_string(shape));
  if (!m.replacement.empty()) return check_replaced(m);
  Expected expected(m);
  Eigen::Index blocks = (expected.outputs() + kBlock - 1) / kBlock;
  parallel(blocks, [&](std::int64_t begin, std::int64_t end) {
    for (Eigen::Index b = begin; b < end; ++b)
      expected.check(b * kBlock, std::min(kBlock, expected.outputs() - b * kBlock));
  });
}

}  // namespace lenscpp
