// The simulated device as the rest of the library sees it: an accelerator in plain C++ that
// computes what the CPU computes, within limits like Apple's, and lies on command. It lives in a
// shared object of its own, which is loaded on the first use of device "simulated": from then on
// PyTorch reports it as the accelerator of the process. Free of torch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "verify/device/device_faults.h"

namespace lenscpp {

/// What the device imitates of a real one. All off: an ordinary, honest accelerator.
struct SimulatedLimits {
  bool float64 = true;                // Apple's has none: a TypeError
  std::int64_t max_buffer_bytes = 0;  // a larger allocation aborts the process; 0: no limit
  std::vector<std::string> missing =
      {};                      // operators without a kernel ("gelu"); all others are native
  bool fallback = true;        // missing ones run on the CPU with a warning; else they throw
  std::string aborts_at = {};  // an operator whose first call aborts the process
  std::string hangs_at = {};   // an operator whose first call never returns
  std::vector<FaultSpec> faults = {};  // device faults armed from the start, outside of any run too
};
nlohmann::json to_json(const SimulatedLimits& limits);
/// Throws std::invalid_argument naming unknown keys and wrong types.
SimulatedLimits simulated_limits_from_json(const nlohmann::json& json);

/// The device of this process.
class SimulatedDevice {
 public:
  virtual ~SimulatedDevice() = default;
  virtual void set_limits(const SimulatedLimits& limits) = 0;
  /// As they are now: what is set later, by whatever thread, changes nothing in them.
  virtual std::shared_ptr<const SimulatedLimits> limits() const = 0;
  /// Arms faults until the next call, in what this thread runs; null disarms. The device keeps them
  /// alive. Those of the limits are all threads'.
  virtual void arm(std::shared_ptr<DeviceFaults> faults) = 0;
  /// Writes outside of an allocation that canaries beside it have shown, in words; empty: none.
  virtual std::vector<std::string> violations() const = 0;
  /// Calls of every leaf operator that reached the device, by name: "addmm", "copy_to_device".
  virtual std::vector<std::pair<std::string, std::int64_t>> calls() const = 0;
};

/// Loads the device if it is not there yet; LENSCPP_SIMULATED (SimulatedLimits as JSON) configures
/// it then. Throws DeviceError when the shared object is missing, of another build, or does not
/// load.
SimulatedDevice& simulated_device();
/// Whether it was loaded: asking does not load it.
bool simulated_device_loaded();

}  // namespace lenscpp
