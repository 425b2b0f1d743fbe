// Does it fit? The sizes of a planned load and run against the limits of a device and against the
// memory there is, before anything is allocated: by arithmetic, never by trying.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "verify/device/limits.h"
#include "verify/device/memory_plan.h"
#include "verify/device/planned.h"
#include "verify/verified_cache.h"

namespace lenscpp {

/// A tensor or product of a plan that is beyond a limit.
struct Violation {
  std::string what;    // "unembed_out", "blocks.0.attn.hook_attn_scores (product)"
  Shape shape;         // of the tensor; of a product: batch, rows, terms, columns
  std::string type;    // "float32"; empty for a product
  std::int64_t found;  // what the limit measures
  std::int64_t bytes;  // of the tensor; 0 for a product
  Limit limit;
};
/// "unembed_out [22, 1024, 50257] of float32, 4.2 GiB: limit "2^32 bytes a buffer" ...".
std::string to_string(const Violation& violation);

/// What of the weights, and of a run of them, is beyond the limits. Of weights only shapes are
/// read.
std::vector<Violation> weight_violations(const Weights& weights, const DeviceLimits& limits);
std::vector<Violation> run_violations(const Weights& weights, const Request& request,
                                      const DeviceLimits& limits);

/// The most prompts of the request's length, and the longest prompts at the request's batch, that
/// stay within the limits; at most what was asked for, 0 where not even one does.
std::int64_t largest_batch(const Weights& weights, const Request& request,
                           const DeviceLimits& limits);
std::int64_t longest_prompt(const Weights& weights, const Request& request,
                            const DeviceLimits& limits);

/// Throws DeviceError naming the first tensor beyond a limit, its size and the limit, and for a run
/// what would fit.
void require_weights_fit(const Weights& weights, const DeviceLimits& limits);
void require_run_fits(const Weights& weights, const Request& request, const DeviceLimits& limits);
/// Throws DeviceError with both numbers when `needed` and the margin are more than there is.
void require_memory(const std::string& what, std::int64_t needed,
                    const std::optional<AvailableMemory>& available);

/// Everything that is known about a load and a run before either.
struct Preflight {
  std::string model, device;
  DType dtype;
  std::int64_t batch, pos;
  DeviceLimits limits;                                         // that were applied
  std::vector<std::pair<std::string, PlannedTensor>> tensors;  // of weights and run, by name
  std::optional<std::string> dtype_refused;                    // in PyTorch's words
  std::vector<Violation> violations;
  std::int64_t largest_batch, longest_prompt;
  bool one_token_fits;  // one prompt of one token stays within the limits
  MemoryPlan load, run;
  std::optional<AvailableMemory> host, device_memory;  // unset: unknown

  /// The peak of both, one after the other: the weights are still there when the run begins.
  std::int64_t host_bytes() const;
  std::int64_t device_bytes() const;
  /// Whether neither is more than the memory there is, the margin left out.
  bool memory_fits() const;
  bool fits() const { return !dtype_refused && violations.empty() && memory_fits(); }
  const PlannedTensor* largest() const;
};

/// What is asked about: `request` may lack its tokens.
struct PreflightQuestion {
  std::string model, device;
  PlannedLoad load;
  PlannedUse use;
  DeviceLimits limits;
  std::optional<std::string> dtype_refused = {};  // why_not of device and dtype
  std::optional<AvailableMemory> host = {}, device_memory = {};
};
/// `config` as in the checkpoint, before processing.
Preflight preflight(const Config& config, const Request& request,
                    const PreflightQuestion& question);

nlohmann::json to_json(const Preflight& preflight);
/// A few lines: what fits, the largest tensors, the memory; what does not fit, and what would.
std::string in_words(const Preflight& preflight);

}  // namespace lenscpp
