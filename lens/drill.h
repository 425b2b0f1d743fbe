// The drill: every fault at every site of a model, in several dtypes and shapes, one run each: was
// it harmful, was it refused, was the first wrong tensor named?
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lens/hooked_transformer.h"
#include "verify/device/drill.h"
#include "verify/device/faults.h"

namespace lenscpp {

/// Which part of the drill is run. What is not given means all.
struct DrillOptions {
  std::vector<FaultSpec> faults = {};  // without hooks; empty: drill_faults()
  std::vector<std::string> sites =
      {};  // hook names with or without their layer; on-demand ones too
  std::vector<std::int64_t> layers = {};  // negative from the end
  VerifyMode verify = VerifyMode::exact;  // how runs are checked
  std::vector<DType> dtypes = {DType::f32, DType::bf16, DType::f16};
  std::vector<std::int64_t> batches = {1, 2};
  std::vector<std::int64_t> lengths = {};   // empty: 1, 15 and the longest that the model takes
  std::optional<std::int64_t> sample = {};  // so many runs of each fault, spread, drawn by the seed
  std::int64_t honest_runs = 32;            // in other summation orders, for each dtype and shape
  std::uint64_t seed = 0;
  /// After every run, honest ones and probes too: finished faulted runs, and about how many there
  /// will be (0: not known yet). What it throws ends the drill.
  std::function<void(std::int64_t done, std::int64_t all)> progress = {};
};

/// Every fault of both tables as it stands there, and variations of those that come in several
/// forms: those inside the device also without their condition.
std::vector<FaultSpec> drill_faults();
/// "row:garbage=1", as --inject takes it.
std::string fault_in_words(const FaultSpec& fault);

/// Runs it. Tokens are drawn by the seed. Faults at the tap run on the
/// model's own device, those inside of a device on the simulated one. Throws
/// std::invalid_argument (an unknown fault or site, one with a hook, a dtype or a length that no
/// run can have), std::out_of_range (layer), DeviceError; VerificationFailed when the device gets
/// the clean run wrong, or one in another summation order: what is not admitted defines no harm.
DrillReport drill(const HookedTransformer& model, const DrillOptions& options = {});

}  // namespace lenscpp
