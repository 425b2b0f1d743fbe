// The ambient state of torch, pinned while a run lasts: what surrounds a call must not change
// numbers.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <c10/core/Device.h>

#include "hooks/dtype.h"

namespace lenscpp {

/// Reads what can change numbers: torch's flags, those variables of the environment that are set,
/// and the version of macOS where there is one. A flag whose reading throws is "unreadable".
std::map<std::string, std::string> read_ambient(c10::Device device);

/// While alive: no autocast, no gradients, no dispatch modes, float32 products in full float32, or
/// TF32 on CUDA where that was declared. Of several runs at a time the strictest decides.
/// Flags of determinism stay as the caller has them. Restores everything on destruction. The
/// default dtype is left alone: it is process-wide, and the pass names every dtype itself.
class AmbientGuard {
 public:
  explicit AmbientGuard(c10::Device device, MatmulPrecision precision = MatmulPrecision::ieee);
  ~AmbientGuard();
  AmbientGuard(const AmbientGuard&) = delete;
  AmbientGuard& operator=(const AmbientGuard&) = delete;
  /// The flags as they are pinned.
  const std::map<std::string, std::string>& flags() const { return flags_; }

 private:
  struct Pins;
  std::unique_ptr<Pins> pins_;
  std::map<std::string, std::string> flags_;
};

}  // namespace lenscpp
