// Every operation in float64, a block of its output at a time, with what rounding may do to it.
// Eigen only; recomputed from the arrays that the device itself recorded.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "hooks/array.h"
#include "verify/reference/bounds.h"
#include "verify/reference/link.h"
#include "verify/reference/multiply.h"

namespace lenscpp {

/// Part of an output: `rows` runs of `cols` elements, `row_stride` elements apart, from `offset`
/// on.
struct Block {
  std::int64_t offset, row_stride, rows, cols;
};

/// What a block should be.
struct Expectation {
  Mat value;  // [rows, cols]: the operation in float64
  Mat slack;  // [rows, cols]: kExact, or what bounds.h allows beyond the store's rounding
  /// Where set, `slack` is only a cheap lower bound, and this is the slack itself.
  std::function<double(Index row, Index col)> refine;
  /// Sum over the block of the squares of the expected rounding errors; 0: no RMS test.
  double expected_square = 0;
};

/// One link, ready to be recomputed from given inputs. `expect` may be called from many threads.
class Kernel {
 public:
  virtual ~Kernel() = default;
  std::span<const Block> blocks() const { return blocks_; }
  virtual Expectation expect(const Block& block) const = 0;
  /// Expectation::value alone, for runs that compare nothing.
  virtual Mat value(const Block& block) const { return expect(block).value; }
  /// Whether `output` is, without looking closer, what `expect` says to the bit (zeros of either
  /// sign being equal). False where that is not known: a cheap answer for copies.
  virtual bool holds(const Block& /*block*/, const Array& /*output*/) const { return false; }

 protected:
  std::vector<Block> blocks_;
};

/// Rows [row, row + rows) and outputs [first, first + count) of a weight, as [rows, count].
Mat weight_block(const Matrix& w, std::int64_t row, std::int64_t rows, std::int64_t first,
                 std::int64_t count);

/// `inputs` are the recorded values of link.inputs in order; `output` is the shape of what the link
/// makes. Throws std::invalid_argument when the shapes do not fit the operation.
std::unique_ptr<Kernel> make_kernel(const Link& link, std::vector<Array> inputs,
                                    const Shape& output, const Contract& contract);

}  // namespace lenscpp
