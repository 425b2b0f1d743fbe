// Operators that ran on the CPU instead of the device: noticed while a run lasts, in two ways that
// do not depend on each other.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lenscpp {

/// The operator that a warning of PyTorch's says fell back ("aten::gelu"), or whose view became a
/// copy ("aten::unfold (a copy instead of a view)"); nothing for any other warning.
std::optional<std::string> fallback_in(std::string_view warning);

/// While alive, on this thread: whatever falls back is noted, by PyTorch's own warning and by the
/// copy to the CPU that an operator makes inside of itself. Other warnings are handed on to the
/// handler that was there, each once. Restores everything on destruction.
class FallbackWatch {
 public:
  FallbackWatch();
  ~FallbackWatch();
  FallbackWatch(const FallbackWatch&) = delete;
  FallbackWatch& operator=(const FallbackWatch&) = delete;
  /// Each once, without overloads, in the order in which they first fell back.
  const std::vector<std::string>& operators() const;

  struct State;

 private:
  std::unique_ptr<State> state_;
};

}  // namespace lenscpp
