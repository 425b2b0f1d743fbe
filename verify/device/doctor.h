// The check-up of a device: what its phases found, which of them are worth running, and what
// follows from all of it. Free of torch: the phases themselves are run elsewhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace lenscpp {

enum class PhaseStatus : std::uint8_t { pass, warn, fail, skipped };
std::string_view name_of(PhaseStatus status);  // "pass", "warn", "fail", "skipped"
/// Throws std::invalid_argument naming what is allowed.
PhaseStatus phase_status_from_name(std::string_view name);

/// One phase of the check-up, in the order in which they run.
struct PhaseInfo {
  std::string_view name, question;
  std::vector<std::string_view> needs;  // phases without whose success this one cannot be asked
};
std::span<const PhaseInfo> doctor_phases();
/// Throws std::invalid_argument listing the phases.
const PhaseInfo& phase_info(std::string_view name);

/// What one phase found. `measured` is what the recommendation reads; phases say which keys.
struct PhaseResult {
  std::string name;
  PhaseStatus status = PhaseStatus::fail;
  std::string summary;                    // one line
  std::vector<std::string> details = {};  // further lines
  nlohmann::json measured = nlohmann::json::object();
  double seconds = 0;
};
nlohmann::json to_json(const PhaseResult& result);
/// Throws nlohmann::json::exception or std::invalid_argument for what to_json did not write.
PhaseResult phase_result_from_json(const nlohmann::json& json);

/// How a phase's process ended without leaving a result.
struct ProcessEnd {
  bool timed_out = false;
  double limit_seconds = 0;
  std::optional<int> signal = {};  // else it exited with `status`
  int status = 0;
  std::string last_line = {};  // that it wrote to standard error
};
/// A failure: "aborted (SIGABRT) while ...", "hung: stopped after 20 s while ...", "ended with 1".
/// measured.died is "aborted", "hung" or "ended".
PhaseResult died(std::string_view phase, const ProcessEnd& end);

/// Why a phase cannot be asked after these results; empty when it can.
std::optional<std::string> reason_to_skip(const PhaseInfo& phase,
                                          const std::vector<PhaseResult>& before);

enum class Advice : std::uint8_t { use, use_with_settings, use_cpu, not_this_cpu };
/// "use it", "use it with these settings", "use the CPU", "do not use this machine's CPU as it is".
std::string_view name_of(Advice advice);

/// Which prompts may be used where runs of growing lengths were verified up to `longest` tokens and
/// one of `failed` tokens then failed: "at most 256 tokens a prompt". Nothing where none was
/// verified, or where a length failed that had been verified before: no length can be relied on.
std::optional<std::string> length_setting(std::int64_t longest, std::int64_t failed);

/// What follows. 90 % of the operators native or more: use it; 70 to 90 %: with care; below: the
/// CPU.
struct Recommendation {
  Advice advice = Advice::use;
  std::vector<std::string> settings = {};
  std::vector<std::string> because = {};
  /// Whether the device may be used, with the settings named if any.
  bool usable() const { return advice == Advice::use || advice == Advice::use_with_settings; }
  /// One line and one more for each setting and reason.
  std::string in_words() const;
};
nlohmann::json to_json(const Recommendation& recommendation);
inline constexpr double kNativeEnough = 0.9, kNativeWithCare = 0.7;

/// A pure function of what was found. Phases that are missing count as not having run, and without
/// a verified forward pass nothing is recommended but the CPU; of the CPU itself, not even that.
Recommendation recommend(std::string_view device, const std::vector<PhaseResult>& results);

}  // namespace lenscpp
