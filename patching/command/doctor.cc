// lenscpp doctor: what to expect of a device, found out in processes of their own.
#include <chrono>
#include <set>

#include "lens/device.h"
#include "patching/command/child_process.h"
#include "patching/command/common.h"
#include "patching/command/doctor_phases.h"
#include "patching/command/report.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr double kSecondsAPhase = 300;
constexpr const char* kFooter = R"(Examples:
  lenscpp doctor
  lenscpp doctor path/to/gpt2 --device cuda
  lenscpp doctor --device mps --json

Each phase runs in a process of its own: one that aborts or hangs is a line of the report, and the next one runs.
Exit status: 0 use the device (with the settings named, if any), 4 use the CPU (or not even that), 2 bad usage.
)";

struct Options : CommonOptions {
  std::string phase;
  std::vector<std::string> only;
  double seconds = kSecondsAPhase;
};

std::vector<std::string> arguments_for(std::string_view phase, const Options& o) {
  std::vector<std::string> words{"doctor",
                                 o.model,
                                 "--phase",
                                 std::string(phase),
                                 "--device",
                                 o.device,
                                 "--dtype",
                                 o.dtype,
                                 "--threads",
                                 std::to_string(o.threads),
                                 "--seed",
                                 std::to_string(o.seed),
                                 "--matmul-precision",
                                 o.matmul_precision};
  if (o.no_processing) words.emplace_back("--no-processing");
  if (o.no_fallback) words.emplace_back("--no-fallback");
  return words;
}

PhaseResult in_a_child(const PhaseInfo& phase, const Options& o) {
  auto start = std::chrono::steady_clock::now();
  std::string name(phase.name);
  auto progress = std::make_unique<Progress>(name + ": " + std::string(phase.question));
  ChildResult child = run_child(arguments_for(name, o), o.seconds, [&](const std::string& line) {
    progress.reset();
    progress = std::make_unique<Progress>(name + ": " + line.substr(0, 60));
  });
  PhaseResult result;
  try {
    if (child.end.timed_out || child.end.signal) throw std::invalid_argument("no result");
    result = phase_result_from_json(nlohmann::json::parse(child.output));
  } catch (const std::exception&) {
    result = died(name, child.end);
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

// Those asked for and what they need; all of them unless some were asked for.
std::set<std::string_view> chosen(const std::vector<std::string>& only) {
  std::set<std::string_view> names;
  for (const PhaseInfo& phase : doctor_phases())
    if (only.empty()) names.insert(phase.name);
  for (const std::string& name : only) {
    const PhaseInfo& phase = phase_info(name);
    names.insert(phase.name);
    names.insert(phase.needs.begin(), phase.needs.end());
  }
  return names;
}

std::vector<PhaseResult> examine(const Options& o) {
  std::vector<PhaseResult> results;
  auto wanted = chosen(o.only);
  for (const PhaseInfo& phase : doctor_phases()) {
    if (!wanted.contains(phase.name)) continue;
    if (auto reason = reason_to_skip(phase, results))
      results.push_back(
          {.name = std::string(phase.name), .status = PhaseStatus::skipped, .summary = *reason});
    else
      results.push_back(in_a_child(phase, o));
  }
  return results;
}

std::string coloured(PhaseStatus status) {
  switch (status) {
    case PhaseStatus::pass:
      return styled("pass", Style::good);
    case PhaseStatus::warn:
      return styled("warn", Style::doubtful);
    case PhaseStatus::fail:
      return styled("FAIL", Style::bad);
    case PhaseStatus::skipped:
      return styled("-", Style::dim);
  }
  throw std::logic_error("[doctor] not a PhaseStatus");
}

std::string report(const Options& o, const std::vector<PhaseResult>& results,
                   const Recommendation& recommendation) {
  Table table({{"phase"}, {""}, {"s", true}, {"what was found"}});
  for (const PhaseResult& r : results) {
    bool ran = r.status != PhaseStatus::skipped;
    table.add({r.name, coloured(r.status), ran ? fixed(r.seconds, 1) : "", r.summary});
    bool speaks =
        r.status == PhaseStatus::warn || r.status == PhaseStatus::fail || (r.name == "plan" && ran);
    for (const std::string& detail : r.details)
      if (speaks && detail != r.summary) table.add({"", "", "", "  " + detail});
  }
  bool good = recommendation.usable();
  std::string words = recommendation.in_words(), first = words.substr(0, words.find('\n'));
  return styled(o.device, Style::bold) + " in " + o.dtype + ", with " + o.model + "\n\n" +
         table.str() + "\n" + styled(first, good ? Style::good : Style::bad) +
         words.substr(first.size()) + "\n";
}

ExitStatus doctor(const Options& o) {
  if (!o.phase.empty()) {
    print(to_json(run_phase(o.phase, o))
              .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
          "\n");
    return ExitStatus::done;
  }
  resolve_model(o.model);
  chosen(o.only);
  dtype_from_name(o.dtype);
  if (auto warning = device_warning_once(o.device)) complain(*warning);
  std::vector<PhaseResult> results = examine(o);
  Recommendation recommendation = recommend(o.device, results);
  ExitStatus status = recommendation.usable() ? ExitStatus::done : ExitStatus::device;
  if (!o.json) {
    print(report(o, results, recommendation));
    return status;
  }
  ordered_json phases = ordered_json::array();
  for (const PhaseResult& r : results) phases.emplace_back(to_json(r));
  print_json({{"command", "doctor"},
              {"exit_status", static_cast<int>(status)},
              {"device", o.device},
              {"dtype", o.dtype},
              {"model", o.model},
              {"phases", phases},
              {"recommendation", to_json(recommendation)}});
  return status;
}

}  // namespace

Action add_doctor(CLI::App& program) {
  auto o = std::make_shared<Options>();
  o->model = "tiny-ioi";
  CLI::App& command = *program.add_subcommand(
      "doctor", "Examine a device: what works, what does not, use it or not");
  add_model_option(command, *o);
  command.get_option("MODEL")->required(false);
  add_common_options(command, *o);
  command.remove_option(command.get_option("--adapter"));  // the device is examined, not a model
  command.add_option("--seconds", o->seconds, "After how long a phase counts as hung")
      ->type_name("S")
      ->group("Running")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command.add_option("--only", o->only, "Some phases, separated by commas, and what they need")
      ->delimiter(',')
      ->type_name("NAMES")
      ->group("Running");
  command.add_option("--phase", o->phase, "One phase, here and now, as JSON")->group("");
  command.footer(kFooter);
  return [o] { return doctor(*o); };
}

}  // namespace lenscpp::command
