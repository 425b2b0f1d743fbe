// The checksum check: rows of a product against random projections of its weight, in the size of
// the two tensors instead of a second product. It decides only what may pass without being
// recomputed: whatever it doubts, the exact check judges. Constants and their measurements:
// numerics.md, part C.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "verify/reference/exact.h"

namespace lenscpp {

/// A weight W beside random vectors R: what a row of x W + b must add up to.
struct Projection {
  using Columns = Eigen::Matrix<double, Eigen::Dynamic, 4>;
  std::int64_t heads, terms, width;  // of each head's product: x_h [terms] -> y_h [width]
  Columns R;                         // [heads * width, 4]: sign * U[0.5, 1.5)
  Columns P;                         // [heads * terms, 4]: W_h R_h
  Eigen::VectorXd w_square;          // [heads * terms]: sum over outputs of W^2
  Array weight;                      // keeps the memory alive that P was computed from
};

/// Columns [first, first + count) of a product's output.
using ColumnRange = std::pair<std::int64_t, std::int64_t>;

/// A few columns of a weight and of its bias, side by side in memory.
struct SomeColumns {
  std::vector<ColumnRange> ranges;
  Matrix weight;
  std::optional<Vector> bias;
  Array of;  // keeps the memory alive that they were copied from
};

/// Four projections of every weight of a model, and a few of its columns, each computed at its
/// first use. Safe for use from several threads.
class Projections {
 public:
  /// `seed` must be unknown to whatever is checked: secret_seed() of the process, or a test's.
  explicit Projections(std::uint64_t seed) : seed_(seed) {}
  /// Drawn from the system once a process.
  static std::uint64_t secret_seed();
  std::uint64_t seed() const { return seed_; }
  /// Of a link whose op is linear, head_linear or head_result; `heads` is 1 for linear.
  const Projection& of(const Link& link, std::int64_t heads, const ParallelFor& parallel);
  /// Of a weight that acts as a whole: the ranges of its first call, which are few columns.
  const SomeColumns& columns(const Link& link, const std::vector<ColumnRange>& ranges);

 private:
  using Key = std::tuple<const std::byte*, std::int64_t, std::int64_t, bool, Op, std::int64_t>;
  std::uint64_t seed_;
  std::mutex mutex_;
  static Key key_of(const Link& link, std::int64_t heads);
  std::map<Key, std::unique_ptr<const Projection>> known_;
  std::map<Key, std::unique_ptr<const SomeColumns>> columns_;
};

/// A residual may be this many sigma; beyond it a link is checked exactly. Honest residuals: at
/// most 0.6 of it.
inline constexpr double kResidualSigmas = 4;
/// Over a whole tensor their rms may be 0.6 sigma, or more where so few rows can be so by chance:
/// 0.45 (the rms of one rounding is 0.425) and six standard deviations of the rms of 4 rows
/// numbers.
double residual_rms_limit(std::int64_t rows);

/// What the projections of one tensor came to.
struct Residuals {
  std::int64_t rows = 0;  // tested, a head's row being one
  double worst = 0;       // |residual| / (4 sigma); infinite where anything is not finite
  double rms = 0;         // of residual / sigma
  bool clean() const { return rows > 0 && worst <= 1 && rms <= residual_rms_limit(rows); }
};

/// Tests every row of a product. Throws std::invalid_argument where shapes do not fit.
Residuals project(const Link& link, const Array& input, const Array& output,
                  const Contract& contract, Projections& projections, const ParallelFor& parallel);

/// Checks a link in O(size): products by projections of every row, and exactly on sampled rows;
/// whatever either doubts, and every other operation, by check_exact. Point::compared counts what
/// was compared exactly, Point::projected the rest.
Point check_checksum(const Link& link, const std::vector<Array>& inputs, const Array& output,
                     const Contract& contract, Projections& projections,
                     const ParallelFor& parallel);

}  // namespace lenscpp
