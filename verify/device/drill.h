// What a drill came to: every fault at every site, one run each. Who ran it: lens/drill. Records,
// counts, the table and the document only.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/dtype.h"
#include "verify/device/harm.h"

namespace lenscpp {

/// One faulted run.
struct DrillRun {
  std::string fault;       // as --inject takes it, without a hook: "row:garbage=1"
  bool in_device = false;  // inside an operator or a copy of the device; else at the tap
  TensorId place;          // where it was injected
  DType dtype = DType::f32;
  std::int64_t batch = 0, pos = 0;
  std::int64_t changed = 0;   // elements that the fault says it changed; 0: it has not fired
  std::string fired_at = {};  // the tensor of the first change, as the fault says
  Judgement judgement = {};
  bool refused = false;
  std::string error = {};  // what the device threw: nothing came out that could be judged
  std::string named = {};  // the verdict's first failing tensor
  std::string hint = {};
  double of_bound = 0;     // largest error over tolerance in the first changed tensor, as checked
  bool projected = false;  // that tensor was not compared element by element, but for samples

  bool fired() const { return changed > 0; }
  /// Whether the device ended it with an error: then nothing can be said of harm or refusal.
  bool ended() const { return !error.empty(); }
  bool harmful() const { return !ended() && judgement.harm == Harm::harmful; }
  /// Whether the verdict's first failure is the first tensor of the run with another bit.
  bool named_right() const;
};

/// Runs with one fault, counted.
struct DrillRow {
  std::string fault;
  bool in_device = false;
  std::int64_t runs = 0, fired = 0, harmful = 0, between = 0,
               harmless = 0;  // the latter three of fired
  std::int64_t refused = 0;   // of those that fired
  std::int64_t harmful_refused = 0, named = 0;
  std::int64_t threw = 0;  // the device ended the run with an error, whether or not one had fired
  std::string hint = {};   // the one most often given; numbers in it as "#"
};

/// Which share of the harmful runs was refused, by fault and by site; NaN where none was harmful.
struct DrillMap {
  std::vector<std::string> faults, sites;
  std::vector<double> refused;  // [fault, site]
};

/// What honest runs of one dtype and shape differ by: the measure of harm there.
struct DrillSetting {
  std::string device;
  DType dtype = DType::f32;
  std::int64_t batch = 0, pos = 0;
  double spread = 0;       // the widest range at any element over its tensor's largest magnitude
  std::string where = {};  // the tensor of it
};

/// All of a drill.
struct DrillReport {
  std::string model, device;
  std::uint64_t seed = 0;
  std::int64_t honest_runs = 0;  // in other summation orders, for each dtype and shape
  double seconds = 0;
  std::vector<DrillSetting> settings = {};
  std::vector<DrillRun> runs = {};
  /// Faults that changed nothing in any run, or of which there was none, each with the reason.
  std::vector<std::pair<std::string, std::string>> never_fired = {};

  /// In the order of `runs`; `total` adds them up.
  std::vector<DrillRow> rows() const;
  DrillRow total() const;
  DrillMap map() const;
  /// Harmful and not refused: none, or the checker has a hole.
  std::vector<const DrillRun*> missed() const;
  /// Not refused although some bit changed, harmful or not, the largest difference first.
  std::vector<const DrillRun*> unseen() const;
  /// Refused although every bit was the clean run's.
  std::int64_t false_alarms() const;
  /// A row a fault, what was not seen with its size, and the summary.
  std::string table() const;
  /// How much was run, what became of it; what was refused without any difference; whether nothing
  /// was shown at all.
  std::string summary() const;
};

nlohmann::json to_json(const DrillRun& run);
nlohmann::json to_json(const DrillSetting& setting);
nlohmann::json to_json(const DrillReport& report);

}  // namespace lenscpp
