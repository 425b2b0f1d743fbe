// Faults in a run of the device pass: RunOptions.interference and .device_faults made from the
// torch-free tables.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "hooks/transformer/tap.h"
#include "verify/device/device_faults.h"
#include "verify/device/faults.h"

namespace lenscpp {

/// What changes a run's tensors as `injector` says, on whatever device they are; those that it
/// leaves alone are handed on as they are. The injector's log tells afterwards what fired.
Interference interference_of(std::shared_ptr<FaultInjector> injector);

/// Faults of both kinds for runs of one model, made from one list: those at the taps and those
/// inside the simulated device.
class InjectedFaults {
 public:
  /// One time that a fault changed something.
  struct Firing {
    std::string fault;
    std::string name;      // the tensor: at the tap the one changed, in the device the one computed
    std::string op;        // of the device; empty at the tap
    std::int64_t changed;  // elements
  };

  InjectedFaults() = default;
  /// Throws what FaultInjector and DeviceFaults throw.
  InjectedFaults(const std::vector<FaultSpec>& specs, const Config& config);

  bool empty() const { return !injector_ && !device_; }
  Interference interference() const {
    return injector_ ? interference_of(injector_) : Interference();
  }
  const std::shared_ptr<DeviceFaults>& device_faults() const { return device_; }
  /// Those at the taps first, each kind in order; `request` names tensors of edits.
  std::vector<Firing> log(const Request& request) const;

 private:
  std::shared_ptr<FaultInjector> injector_;
  std::shared_ptr<DeviceFaults> device_;
};

}  // namespace lenscpp
