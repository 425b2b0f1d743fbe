// Which elements of an axis an analysis looks at.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace lenscpp {

/// Elements of an axis, as TransformerLens's Slice chooses them: all where `indices` is unset; the
/// axis is dropped where `collapses`. Negative indices count from the end.
struct Choice {
  std::optional<std::vector<std::int64_t>> indices = {};
  bool collapses = false;
};

}  // namespace lenscpp
