// How much memory a load and a run need at their peak, from sizes alone, and how much there is.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "hooks/checkpoint/processing.h"
#include "verify/device/planned.h"

namespace lenscpp {

/// Bytes at the peak, by what they are for. `mapped` is the checkpoint's file, whose pages the
/// system may drop and read again: resident, but not needed.
struct MemoryPlan {
  struct Item {
    std::string what;
    std::int64_t host = 0, device = 0;
  };
  std::vector<Item> items = {};
  std::int64_t mapped = 0;
  std::int64_t stays = 0;  // of host(): what is still there when it is over; of a load, the weights

  std::int64_t host() const;
  std::int64_t device() const;
};

/// A model that is there already: its dtype, and whether it is on the device in question.
struct AlreadyLoaded {
  DType dtype;
  bool in_place;
};
/// How a checkpoint is to be loaded.
struct PlannedLoad {
  Processing processing;
  DType dtype;
  bool on_host;  // the device is the CPU, which uses the weights where they lie
  std::optional<AlreadyLoaded> loaded = {};
  std::int64_t adapter_bytes = 0;    // of its file
  std::int64_t merged_elements = 0;  // of the weights that it changes
};
/// The peak of a load: raw weights, processed ones and rounded ones are there at once.
/// `config.stored_dtype` says how the file holds them. Of a model that is loaded, what moving it
/// takes: nothing where it stays as and where it is.
MemoryPlan plan_load(const Config& config, const PlannedLoad& load);

/// What is done with the tensors of a run.
struct PlannedUse {
  bool on_host;          // the device is the CPU, whose tensors are the recorded ones
  bool verified = true;  // else recorded at most, and never checked
  bool recorded = true;  // else nothing but the output leaves the device
  bool drift = false;
  std::int64_t threads = 1;                                 // of the verification
  std::function<bool(Site, std::int64_t layer)> keep = {};  // unset: everything
  std::optional<std::int64_t> kept_positions = {};          // of pos_slice
};
/// The peak of a run beyond the loaded model.
MemoryPlan plan_run(const Weights& weights, const Request& request, const PlannedUse& use);

/// At least what plan_run can come to with so many threads, host and device together, by a quick
/// look at the sites alone: where even this is small, there is nothing to plan.
std::int64_t rough_run_bytes(const Config& config, const Request& request, std::int64_t threads);

/// Memory that may still be taken, and who says so.
struct AvailableMemory {
  std::int64_t bytes;
  std::string from;  // "MemAvailable of /proc/meminfo", "memory.max of the control group", ...
};
/// The least of what the system has, what the control group allows and what the process's own
/// limits (RLIMIT_AS, RLIMIT_DATA) leave; nothing where the system does not say. `root` is where
/// /proc and /sys are looked for.
std::optional<AvailableMemory> available_host_memory(const std::filesystem::path& root = "/");

/// What is left to the system: 5 %, at least 64 MiB. What is available is the kernel's estimate,
/// allocators round up and keep what was freed, and other programs grow while a run lasts.
std::int64_t margin_of(const AvailableMemory& available);

/// "1.2 GiB", "640 bytes".
std::string size_in_words(std::int64_t bytes);

}  // namespace lenscpp
