// Phases in words and as JSON, their order, and the recommendation.
#include "verify/device/doctor.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <stdexcept>

namespace lenscpp {
namespace {

const PhaseResult* find(const std::vector<PhaseResult>& results, std::string_view name) {
  auto it = std::ranges::find(results, name, &PhaseResult::name);
  return it == results.end() ? nullptr : &*it;
}

bool succeeded(const std::vector<PhaseResult>& results, std::string_view name) {
  const PhaseResult* result = find(results, name);
  return result != nullptr &&
         (result->status == PhaseStatus::pass || result->status == PhaseStatus::warn);
}

std::string signal_name(int signal) {
  switch (signal) {
    case SIGABRT:
      return "SIGABRT";
    case SIGSEGV:
      return "SIGSEGV";
    case SIGBUS:
      return "SIGBUS";
    case SIGILL:
      return "SIGILL";
    case SIGFPE:
      return "SIGFPE";
    case SIGKILL:
      return "SIGKILL";
    default:
      return "signal " + std::to_string(signal);
  }
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

}  // namespace

std::string_view name_of(PhaseStatus status) {
  switch (status) {
    case PhaseStatus::pass:
      return "pass";
    case PhaseStatus::warn:
      return "warn";
    case PhaseStatus::fail:
      return "fail";
    case PhaseStatus::skipped:
      return "skipped";
  }
  throw std::logic_error("[doctor] not a PhaseStatus");
}

PhaseStatus phase_status_from_name(std::string_view name) {
  for (PhaseStatus status :
       {PhaseStatus::pass, PhaseStatus::warn, PhaseStatus::fail, PhaseStatus::skipped})
    if (name_of(status) == name) return status;
  throw std::invalid_argument("[doctor] \"" + std::string(name) +
                              "\" is not a status; allowed: pass, warn, fail, skipped");
}

std::span<const PhaseInfo> doctor_phases() {
  static const std::vector<PhaseInfo> phases{
      {"availability", "is it there?", {}},
      {"dependencies", "what is it used through?", {"availability"}},
      {"operators", "does it have what the model needs?", {"availability"}},
      {"dtypes", "which dtypes arrive and come back?", {"availability"}},
      {"accuracy", "how exact are its functions?", {"availability"}},
      {"copies", "do copies arrive as they were?", {"availability"}},
      {"tokenizer", "do texts come back from their tokens?", {"availability"}},
      {"plan", "does the model fit?", {"availability"}},
      {"load", "can the model be loaded?", {"availability"}},
      {"transfer", "do the weights arrive as they are?", {"availability", "load"}},
      {"forward", "does it compute the model?", {"availability", "load"}},
      {"backward", "does it compute gradients?", {"availability"}},
      {"ioi", "does it keep the indirect object?", {"availability"}},
      {"speed", "is it worth it?", {"availability", "load"}},
      {"swap", "is the system out of memory?", {"availability"}},
  };
  return phases;
}

const PhaseInfo& phase_info(std::string_view name) {
  std::string names;
  for (const PhaseInfo& phase : doctor_phases()) {
    if (phase.name == name) return phase;
    names += (names.empty() ? "" : ", ") + std::string(phase.name);
  }
  throw std::invalid_argument("[doctor] \"" + std::string(name) +
                              "\" is not a phase; allowed: " + names);
}

nlohmann::json to_json(const PhaseResult& r) {
  return {{"name", r.name},       {"status", name_of(r.status)}, {"summary", r.summary},
          {"details", r.details}, {"measured", r.measured},      {"seconds", r.seconds}};
}

PhaseResult phase_result_from_json(const nlohmann::json& j) {
  return {.name = j.at("name"),
          .status = phase_status_from_name(j.at("status").get<std::string>()),
          .summary = j.at("summary"),
          .details = j.at("details").get<std::vector<std::string>>(),
          .measured = j.at("measured"),
          .seconds = j.at("seconds")};
}

PhaseResult died(std::string_view phase, const ProcessEnd& end) {
  std::string what, kind;
  if (end.timed_out) {
    kind = "hung";
    what = fmt::format("hung: stopped after {:g} s", end.limit_seconds);
  } else if (end.signal) {
    kind = "aborted";
    what = "aborted (" + signal_name(*end.signal) + ")";
  } else {
    kind = "ended";
    what = fmt::format("ended with {} and left no result", end.status);
  }
  if (!end.last_line.empty()) what += ": " + end.last_line;
  return {.name = std::string(phase),
          .status = PhaseStatus::fail,
          .summary = what,
          .measured = {{"died", kind}}};
}

std::optional<std::string> reason_to_skip(const PhaseInfo& phase,
                                          const std::vector<PhaseResult>& before) {
  for (std::string_view need : phase.needs)
    if (!succeeded(before, need)) return std::string(need) + " did not succeed";
  return {};
}

std::string_view name_of(Advice advice) {
  switch (advice) {
    case Advice::use:
      return "use it";
    case Advice::use_with_settings:
      return "use it with these settings";
    case Advice::use_cpu:
      return "use the CPU";
    case Advice::not_this_cpu:
      return "do not use this machine's CPU as it is";
  }
  throw std::logic_error("[doctor] not an Advice");
}

std::optional<std::string> length_setting(std::int64_t longest, std::int64_t failed) {
  if (longest < 1 || failed <= longest) return {};
  return "at most " + std::to_string(longest) +
         (longest == 1 ? " token a prompt" : " tokens a prompt");
}

std::string Recommendation::in_words() const {
  std::string text(name_of(advice));
  for (const std::string& setting : settings) text += "\n  with    " + setting;
  for (const std::string& reason : because) text += "\n  because " + reason;
  return text;
}

nlohmann::json to_json(const Recommendation& r) {
  return {{"advice", name_of(r.advice)}, {"settings", r.settings}, {"because", r.because}};
}

namespace {

// Collects what speaks against a device: the worst advice wins.
class Judge {
 public:
  Judge(std::string_view device, const std::vector<PhaseResult>& results)
      : device_(device), results_(results) {}

  Recommendation judge() {
    failures();
    operators();
    settings();
    if (!succeeded(results_, "forward") && result_.advice != Advice::use_cpu)
      against("no forward pass was verified");
    if (result_.advice == Advice::use)
      result_.because.push_back("every run was verified" + what_else());
    if (result_.advice == Advice::use_cpu) result_.settings.clear();
    if (result_.advice == Advice::use_cpu && device_ == "cpu")
      result_.advice = Advice::not_this_cpu;
    return result_;
  }

 private:
  void against(const std::string& reason) {
    result_.advice = Advice::use_cpu;
    result_.because.push_back(reason);
  }
  void with(const std::string& setting, const std::string& reason) {
    if (result_.advice == Advice::use) result_.advice = Advice::use_with_settings;
    result_.settings.push_back(setting);
    result_.because.push_back(reason);
  }

  // What a failure means for forward passes. A process that died is never forgiven.
  void failures() {
    for (const PhaseResult& r : results_) {
      if (r.status != PhaseStatus::fail) continue;
      std::string reason = r.name + ": " + r.summary;
      bool forgiven = !r.measured.contains("died");
      if (forgiven && r.name == "backward")
        with("no gradients on this device", reason);
      else if (forgiven && (r.name == "tokenizer" || r.name == "swap" || r.name == "speed"))
        result_.because.push_back(reason);  // not the device's fault
      else
        against(reason);
    }
  }

  void operators() {
    const PhaseResult* r = find(results_, "operators");
    if (r == nullptr || !r->measured.contains("native_share")) return;
    double share = r->measured.at("native_share");
    auto fallen = r->measured.value("fallback", std::vector<std::string>{});
    std::string on_cpu = fallen.empty() ? "" : "; on the CPU instead: " + joined(fallen);
    if (!(share >= kNativeWithCare))
      against(fmt::format("{:.1f} % of the operators are native, below {:.0f} %{}", 100 * share,
                          100 * kNativeWithCare, on_cpu));
    else if (!(share >= kNativeEnough))
      with("care: allow_fallback=False shows what else runs on the CPU",
           fmt::format("{:.1f} % of the operators are native, below {:.0f} %{}", 100 * share,
                       100 * kNativeEnough, on_cpu));
    else if (!fallen.empty())
      result_.because.push_back("on the CPU instead of the device: " + joined(fallen));
  }

  // What the phases themselves found to be needed: measured.settings, of which measured.why.
  void settings() {
    for (const PhaseResult& r : results_)
      for (const std::string& setting : r.measured.value("settings", std::vector<std::string>{}))
        with(setting, r.name + ": " + r.summary);
  }

  std::string what_else() const {
    const PhaseResult* speed = find(results_, "speed");
    if (device_ == "cpu" || speed == nullptr || !speed->measured.contains("times_as_fast"))
      return "";
    auto times = speed->measured.at("times_as_fast").get<double>();
    if (times > 0 && times < 1) return fmt::format("; {:.3g} times slower than the CPU", 1 / times);
    return fmt::format("; {:.3g} times as fast as the CPU", times);
  }

  std::string_view device_;
  const std::vector<PhaseResult>& results_;
  Recommendation result_;
};

}  // namespace

Recommendation recommend(std::string_view device, const std::vector<PhaseResult>& results) {
  return Judge(device, results).judge();
}

}  // namespace lenscpp
