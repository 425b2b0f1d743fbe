// The ambient state of torch, pinned while a run lasts: what surrounds a call must not change
// numbers.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <c10/core/Device.h>

namespace lenscpp {

/// Reads the flags that can change numbers. A flag whose reading throws is recorded as such.
std::map<std::string, std::string> read_ambient(c10::Device device);

/// While alive: no autocast, no gradients, no dispatch modes, float32 products in full float32.
/// Restores everything on destruction. The default dtype is left alone: it is process-wide, and the
/// pass names every dtype itself.
class AmbientGuard {
 public:
  explicit AmbientGuard(c10::Device device);
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
