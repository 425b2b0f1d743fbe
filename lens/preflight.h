// What verify/device/preflight needs to know of this build and machine: the limits that stand in
// this version of PyTorch, and the memory of a device. And asking about a checkpoint or a model
// without running it.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lens/hooked_transformer.h"
#include "verify/device/preflight.h"

namespace lenscpp {

/// Why the device cannot hold the dtype, in PyTorch's words; nothing where it can.
std::optional<std::string> dtype_refused(const std::string& device, DType dtype);
/// The limits of a device ("mps", "cuda:1", ...) in the PyTorch of this build. Empty for the CPU.
DeviceLimits limits_of_device(const std::string& device);
/// What the device's allocator can still give; nothing where it does not say, and for the CPU.
std::optional<AvailableMemory> available_device_memory(const std::string& device);

/// What is asked about.
struct PreflightOptions {
  LoadOptions load = {};
  std::optional<VerifyMode> verify = {};  // of the run; unset: the model's
  std::int64_t batch = 1;
  std::optional<std::int64_t> pos = {};                // unset: the model's context
  std::optional<std::vector<std::string>> names = {};  // hook points to keep, as in RunOptions
  Plan plan = {};
};

/// Arithmetic over the config alone: nothing is loaded, nothing runs, no weight is read. The folder
/// must hold a config.json, and may hold nothing else. Throws std::invalid_argument or
/// std::out_of_range for a length beyond the context, unknown hooks, edits that do not fit;
/// DeviceError for a name that is no device, as named_device does. One that is missing may be asked
/// about.
Preflight preflight(const std::filesystem::path& folder, const PreflightOptions& options);

/// Another device and dtype than a model has: see HookedTransformer::moved.
struct Elsewhere {
  std::string device;
  DType dtype;
};
/// The same of a model that is loaded, whose own options stand in for options.load. Its weights are
/// there already: what is asked is whether the run fits beside them, and what else moving the model
/// `elsewhere` would take.
Preflight preflight(const HookedTransformer& model, PreflightOptions options,
                    const std::optional<Elsewhere>& elsewhere = {});

}  // namespace lenscpp
