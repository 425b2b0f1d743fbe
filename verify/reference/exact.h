// The exact check: one link recomputed in float64 from the device's own recorded inputs, compared
// element by element within bounds.h. The comparison code is the product.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/array.h"
#include "hooks/parallel.h"
#include "verify/reference/bounds.h"
#include "verify/reference/link.h"

namespace lenscpp {

/// The evidence of one link's check: a point of a Verdict.
struct Point {
  TensorId id;
  Op op;
  std::int64_t compared = 0;   // elements
  std::int64_t projected = 0;  // elements that only a checksum covered, see checksum.h
  std::int64_t failed = 0;     // elements beyond their tolerance; NaN always is
  double worst_ratio = 0;  // error / tolerance, infinite where the tolerance is 0 or the error NaN
  double rms_ratio =
      0;  // rms of errors / rms of expected rounding errors; 0 where there is no such test
  std::int64_t worst_index = 0;  // flat
  double device_value = 0;       // at the worst index
  double reference_value = 0;
  Shape shape;
  double residual = 0;    // of the checksum: worst residual / limit; 0 where there was none
  std::string why;        // what failed, where it is not elements: "never computed", "shape [..]"
  std::string hint;       // what the error looks like, where something failed
  std::string name = {};  // of the tensor, as Request::name_of has it; empty outside a run

  bool passed() const {
    return compared > 0 && compared + projected == numel(shape) && failed == 0 &&
           rms_ratio <= kRmsLimit && residual <= 1;
  }
};

/// How the hint of a precision of 11 bits begins.
inline constexpr std::string_view kTf32Hint = "precision about tf32";

/// The name, or what to_string makes of the id.
std::string to_string(const Point& point);

/// Checks `output` against the link recomputed from `inputs` (the recorded values of link.inputs).
/// Never throws on wrong numbers: they are in the Point. Throws std::invalid_argument on shapes
/// that cannot be an input of the operation. `extra` (float64, shaped as the output) widens every
/// tolerance where inputs were not recorded.
Point check_exact(const Link& link, const std::vector<Array>& inputs, const Array& output,
                  const Contract& contract, const ParallelFor& parallel, const Array& extra = {});
/// The tolerance of every element, as check_exact applies it: float64, shaped as the output.
Array tolerances(const Link& link, const std::vector<Array>& inputs, const Shape& output,
                 const Contract& contract);

/// What the failing elements of a link look like: "one element", "head 2", "positions from 8 on",
/// ...
std::string diagnose(const Link& link, const std::vector<Array>& inputs, const Array& output,
                     const Contract& contract, const Point& point, const Array& extra = {});

/// The link in float64 from float64 inputs, shaped `output`.
Array compute(const Link& link, const std::vector<Array>& inputs, const Shape& output,
              const ParallelFor& parallel);

}  // namespace lenscpp
