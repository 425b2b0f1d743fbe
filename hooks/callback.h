// Interventions as functions: what cannot be data runs between two links of the computation. What a
// function makes of a value cannot be predicted, so what the device goes on with is compared with
// what the function returned, bit by bit; everything before and after is checked as ever.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "hooks/array.h"
#include "hooks/hook_point.h"

namespace lenscpp {

/// A function at one hook point, applied after the plan's edits there. It is handed a host snapshot
/// and returns what the run goes on with, or nothing to leave the value. What it throws, the run
/// throws.
struct Callback {
  Site site;
  std::int64_t layer = 0;
  std::string name;  // of the function, for the record and the verdict
  std::function<std::optional<Array>(const TensorId&, const Array&)> call;
};

/// "zero_head at blocks.3.attn.hook_z".
std::string describe(const Callback& callback);

/// Whether two arrays agree in dtype, shape and every bit.
bool identical(const Array& a, const Array& b);
/// Throws std::invalid_argument where `after` has another dtype or shape than `before`, or where an
/// element that the callback changed is not finite; in attn_scores -inf hides a key, and each query
/// must be left one.
void check_returned(const Callback& callback, const Array& before, const Array& after);

}  // namespace lenscpp
