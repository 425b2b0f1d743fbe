// What each phase of the check-up does.
#include "patching/command/doctor_phases.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <sys/utsname.h>
#include <torch/version.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "hooks/build_info.h"
#include "hooks/transformer/ambient.h"
#include "hooks/transformer/torch_array.h"
#include "lens/compare.h"
#include "lens/device.h"
#include "lens/preflight.h"
#include "patching/command/device_checks.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr const char* kPrompt = "When John and Mary went to the store, John gave the bag to";

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

PhaseResult result_of(PhaseStatus status, std::string summary) {
  return {.status = status, .summary = std::move(summary)};
}
PhaseResult passed(std::string summary) { return result_of(PhaseStatus::pass, std::move(summary)); }

// Resident memory of this process in bytes, and what the system has left; 0 where it does not say.
std::size_t field_of(const char* file, const std::string& field) {
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with(field + ":") || line.starts_with(field + " ")) {
      std::size_t value = std::strtoull(line.c_str() + field.size() + 1, nullptr, 10);
      return line.ends_with("kB") ? value << 10 : value;
    }
  return 0;
}
std::size_t resident_bytes() { return field_of("/proc/self/status", "VmRSS"); }

HookedTransformer on_the_device(const CommonOptions& o) { return load(o); }
HookedTransformer on_the_cpu(CommonOptions o) {
  o.device = "cpu";
  return load(o);
}
bool advises_tf32(const std::string& advice) {
  return advice.find("matmul_precision=\"tf32\"") != advice.npos;
}

// Ids spread over the vocabulary, the same every time.
Tokens some_tokens(const HookedTransformer& model, std::int64_t length) {
  Tokens tokens{.batch = 1, .pos = length, .ids = {}};
  for (std::int64_t i = 0; i < length; ++i)
    tokens.ids.push_back((i * 7919 + 11) % model.config().d_vocab);
  return tokens;
}

// --- is it there? ---

double one_number_there_and_back(c10::Device device) {
  at::Tensor there = at::full({1}, 1.5, at::TensorOptions().device(device));
  return there.to(at::kCPU).const_data_ptr<float>()[0];
}

PhaseResult availability(const CommonOptions& o) {
  step("one number to " + o.device + " and back");
  double back = 0;
  try {
    back = one_number_there_and_back(named_device(o.device));
  } catch (const c10::Error& e) {
    return result_of(PhaseStatus::fail, "\"" + o.device + "\" cannot be used: " +
                                            first_line(e.what_without_backtrace()));
  }
  if (back != 1.5) return result_of(PhaseStatus::fail, "1.5 came back as " + short_number(back));
  utsname system{};
  uname(&system);
  std::string running = std::string(system.sysname) + " " + system.release;
  PhaseResult result =
      passed(o.device + " answers; torch " TORCH_VERSION ", " + running + " on " + system.machine);
  result.measured = {{"torch", TORCH_VERSION},
                     {"lenscpp", std::string(lenscpp_version())},
                     {"commit", std::string(build_commit())},
                     {"system", running},
                     {"processor", system.machine}};
  return result;
}

PhaseResult dependencies(const CommonOptions& o) {
  auto flags = read_ambient(named_device(o.device));
  PhaseResult result =
      passed(std::to_string(at::get_num_threads()) + " threads, " + at::get_cpu_capability() +
             ", " + std::to_string(flags.size()) + " flags read");
  std::istringstream lines(at::show_config());
  for (std::string line; std::getline(lines, line);)
    if (line.find("MKL") != line.npos || line.find("OpenMP") != line.npos ||
        line.find("CUDA Runtime") != line.npos)
      result.details.push_back(line.substr(line.find_first_not_of(" -")).substr(0, 100));
  result.measured = {{"threads", at::get_num_threads()},
                     {"cpu_capability", at::get_cpu_capability()},
                     {"ambient", flags}};
  for (const auto& [flag, value] : flags)
    if (value == "unreadable") {
      result.status = PhaseStatus::warn;
      result.details.push_back(flag + " cannot be read");
    }
  return result;
}

// --- what it computes, piece by piece ---

PhaseResult operators(const CommonOptions& o) {
  c10::Device device = named_device(o.device);
  HookedTransformer model = HookedTransformer::from_pretrained(
      resolve_model(o.model), {.dtype = dtype_from_name(o.dtype), .first_n_layers = 1});
  std::vector<OperatorCheck> checks = check_operators(model, some_tokens(model, 5), device);
  std::vector<std::string> fallen, missing;
  json list = json::array();
  for (const OperatorCheck& check : checks) {
    list.push_back({{"name", check.name}, {"status", check.status}, {"error", check.error}});
    if (check.status == "fallback") fallen.push_back(check.name);
    if (check.status == "missing") missing.push_back(check.name);
  }
  auto total = static_cast<double>(checks.size());
  double native = total - static_cast<double>(fallen.size() + missing.size());
  PhaseResult result = passed(fixed(native, 0) + " of " + fixed(total, 0) +
                              " operators are native (" + percent(native / total) + ")");
  auto add = [&](const char* what, const std::vector<std::string>& names) {
    if (names.empty()) return;
    result.summary += std::string("; ") + what + ": ";
    for (std::size_t i = 0; i < names.size(); ++i)
      result.summary += (i == 0 ? "" : ", ") + names[i];
  };
  add("on the CPU instead", fallen);
  add("missing", missing);
  for (const OperatorCheck& check : checks)
    if (!check.error.empty()) result.details.push_back(check.name + ": " + check.error);
  result.measured = {{"operators", list},
                     {"native_share", native / total},
                     {"fallback", fallen},
                     {"missing", missing}};
  bool mps = o.device.starts_with("mps");
  if (!missing.empty() && mps)
    result.measured["settings"] = {"PYTORCH_ENABLE_MPS_FALLBACK=1 in the environment"};
  if (!fallen.empty() || !missing.empty()) result.status = PhaseStatus::warn;
  if (!missing.empty() && !mps) result.status = PhaseStatus::fail;
  return result;
}

PhaseResult dtypes(const CommonOptions& o) {
  std::vector<DtypeCheck> checks = check_dtypes(named_device(o.device));
  PhaseResult result = passed("");
  json list = json::array();
  for (const DtypeCheck& check : checks) {
    list.push_back({{"dtype", check.name}, {"error", check.error}, {"lies", check.lies}});
    result.summary += (result.summary.empty() ? "" : ", ") + check.name +
                      (check.error.empty() ? ""
                       : check.lies        ? " WRONG"
                                           : " refused");
    if (!check.error.empty()) result.details.push_back(check.name + ": " + check.error);
    bool needed = check.name == o.dtype || check.name == "int64" || check.name == "bool";
    if (check.lies || (!check.error.empty() && needed))
      result.status = PhaseStatus::fail;
    else if (!check.error.empty() && result.status == PhaseStatus::pass)
      result.status = PhaseStatus::warn;
  }
  result.measured = {{"dtypes", list}};
  return result;
}

PhaseResult accuracy(const CommonOptions& o) {
  std::string words;
  json list = json::object();
  std::vector<std::string> wrong;
  for (const AccuracyCheck& check : check_accuracy(named_device(o.device))) {
    list[check.name] = {
        {"ulp", number(check.worst_ulp)}, {"allowed", check.allowed}, {"at", number(check.at)}};
    words += (words.empty() ? "" : ", ") + check.name + " " + fixed(check.worst_ulp, 1);
    if (!(check.worst_ulp <= check.allowed))
      wrong.push_back(check.name + " is off by " + short_number(check.worst_ulp) + " ulp at " +
                      short_number(check.at) + "; allowed: " + short_number(check.allowed));
  }
  PhaseResult result = wrong.empty() ? passed("worst errors in ulp: " + words)
                                     : result_of(PhaseStatus::fail, wrong[0]);
  result.details = wrong;
  result.measured = {{"ulp", list}};
  return result;
}

PhaseResult copies(const CommonOptions& o) {
  std::vector<CopyCheck> checks = check_copies(named_device(o.device));
  std::vector<std::string> wrong;
  for (const CopyCheck& check : checks)
    if (!check.error.empty()) wrong.push_back(check.name + ": " + check.error);
  std::string all = std::to_string(checks.size()) + " kinds of copies";
  PhaseResult result = wrong.empty()
                           ? passed(all + ", both ways, bit for bit")
                           : result_of(PhaseStatus::fail,
                                       std::to_string(wrong.size()) + " of " + all + " are wrong");
  result.details = wrong;
  result.measured = {{"checked", checks.size()}, {"wrong", wrong}};
  return result;
}

PhaseResult backward(const CommonOptions& o) {
  double worst = 0;
  std::string where;
  for (auto [name, error] : check_backward(named_device(o.device)))
    if (!(error <= worst)) {
      worst = error;
      where = name;
    }
  // float32, sums of 64: rounding makes about 1e-6, operands of 11 bits about 1e-3.
  constexpr double kAllowed = 1e-4, kOfTf32 = 5e-3;
  PhaseStatus status = worst <= kAllowed  ? PhaseStatus::pass
                       : worst <= kOfTf32 ? PhaseStatus::warn
                                          : PhaseStatus::fail;
  PhaseResult result = result_of(status, "gradients of a small MLP differ from float64 by " +
                                             short_number(worst) + " of their norm" +
                                             (status == PhaseStatus::pass ? "" : ", of " + where));
  result.measured = {{"relative_error", number(worst)}, {"of", where}};
  return result;
}

// --- the model ---

PhaseResult tokenizer(const CommonOptions& o) {
  std::filesystem::path file = resolve_model(o.model) / "tokenizer.json";
  if (!std::filesystem::exists(file))
    return result_of(PhaseStatus::skipped, "the model has no tokenizer.json");
  Tokenizer tokenizer = Tokenizer::from_file(file);
  std::vector<std::string> wrong;
  const std::vector<std::string> texts{kPrompt, " Mary", "The store.\n"};
  for (const std::string& text : texts)
    if (tokenizer.decode(tokenizer.encode(text)) != text) wrong.push_back(text);
  if (wrong.empty()) return passed(std::to_string(texts.size()) + " texts come back as they were");
  return result_of(PhaseStatus::warn,
                   quoted_token(wrong[0]) + " does not come back from its tokens");
}

PhaseResult loading(const CommonOptions& o) {
  std::size_t before = resident_bytes();
  auto start = Clock::now();
  step("loading");
  HookedTransformer model = on_the_device(o);
  double seconds = seconds_since(start);
  std::size_t after = resident_bytes(), weights = model.weights().nbytes();
  PhaseResult result =
      passed(bytes_in_words(weights) + " of weights in " + fixed(seconds, 1) + " s");
  if (after > 0)
    result.summary +=
        "; this process went from " + bytes_in_words(before) + " to " + bytes_in_words(after);
  auto known = [](std::size_t bytes) { return bytes > 0 ? json(bytes) : json(); };
  result.measured = {{"weights_bytes", weights},
                     {"resident_before_bytes", known(before)},
                     {"resident_after_bytes", known(after)},
                     {"available_bytes", known(field_of("/proc/meminfo", "MemAvailable"))},
                     {"seconds", seconds}};
  return result;
}

PhaseResult transfer(const CommonOptions& o) {
  HookedTransformer model = on_the_cpu(o);
  c10::Device device = named_device(o.device);
  if (device.is_cpu()) return passed("none: the CPU uses the weights where they lie");
  double up = 0, down = 0;
  std::size_t bytes = 0;
  std::vector<std::string> wrong;
  model.weights().for_each([&](const std::string& name, const Array& array) {
    step("weight " + name);
    auto start = Clock::now();
    at::Tensor there = upload(array, device);
    up += seconds_since(start);
    start = Clock::now();
    Array back = snapshot(there);
    down += seconds_since(start);
    bytes += array.nbytes();
    if (back.digest() != array.digest()) wrong.push_back(name);
  });
  auto rate = [&](double seconds) {
    return bytes_in_words(
               static_cast<std::size_t>(static_cast<double>(bytes) / std::max(seconds, 1e-9))) +
           "/s";
  };
  PhaseResult result = passed(bytes_in_words(bytes) + " there at " + rate(up) + ", back at " +
                              rate(down) + ", the same bits");
  result.measured = {
      {"bytes", bytes}, {"up_seconds", up}, {"down_seconds", down}, {"wrong", wrong}};
  if (!wrong.empty())
    result = {
        .status = PhaseStatus::fail,
        .summary = std::to_string(wrong.size()) + " weights came back changed, first " + wrong[0],
        .measured = result.measured};
  return result;
}

// Growing lengths with the thresholds of known faults among them, then shapes that were there
// before.
std::vector<std::int64_t> lengths_for(const Config& config) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t n : {1, 2, 5, 16, 31, 32, 33, 64, 128, 256})
    if (n <= config.n_ctx) lengths.push_back(n);
  for (std::int64_t again : {5, 1})
    if (again <= config.n_ctx) lengths.push_back(again);
  return lengths;
}

struct ForwardCheck {
  std::int64_t verified = 0, longest = 0, elements = 0;
  std::int64_t failed_length = 0;
  std::string refused;  // by verification
  std::string failed;   // by the device
  std::string advice;
  std::set<std::string> fallbacks;
};

ForwardCheck check_forward(const HookedTransformer& model) {
  ForwardCheck check;
  for (std::int64_t length : lengths_for(model.config())) try {
      step("verified run of " + std::to_string(length) + " tokens");
      VerifiedCache cache =
          model.run_with_cache(some_tokens(model, length), {.names = std::vector<std::string>{}});
      check.verified += 1;
      check.longest = std::max(check.longest, length);
      check.elements += cache.verdict().n_compared();
      check.fallbacks.insert(cache.verdict().fallbacks.begin(), cache.verdict().fallbacks.end());
    } catch (const VerificationFailed& e) {
      const Point* first = e.verdict().first_failure();
      check.refused = std::to_string(length) + " tokens: " +
                      (first == nullptr ? "nothing was compared" : to_string(*first)) +
                      (first == nullptr || first->hint.empty() ? "" : ": " + first->hint);
      check.advice = e.verdict().advice;
      return check;
    } catch (const std::exception& e) {
      check.failed_length = length;
      check.failed = std::to_string(length) + " tokens: " + first_line(e.what());
      return check;
    }
  return check;
}

PhaseResult forward(const CommonOptions& o) {
  ForwardCheck check = check_forward(on_the_device(o));
  std::vector<std::string> settings;
  PhaseStatus status = PhaseStatus::pass;
  std::string words;
  // An undeclared precision has a remedy: to declare it.
  if (!check.refused.empty() && advises_tf32(check.advice)) {
    CommonOptions declared = o;
    declared.matmul_precision = "tf32";
    ForwardCheck again = check_forward(on_the_device(declared));
    if (again.refused.empty() && again.failed.empty()) {
      words = "float32 products are TF32 (" + check.refused + "); declared so, ";
      check = again;
      settings.push_back("matmul_precision=\"tf32\" (--matmul-precision tf32)");
      status = PhaseStatus::warn;
    }
  }
  if (!check.refused.empty()) {
    status = PhaseStatus::fail;
    words = "INVALID at " + check.refused;
  } else if (!check.failed.empty()) {
    auto setting = length_setting(check.longest, check.failed_length);
    status = setting ? PhaseStatus::warn : PhaseStatus::fail;
    if (setting) settings.push_back(*setting);
    words = check.longest == 0 ? check.failed
                               : "verified up to " + std::to_string(check.longest) +
                                     " tokens; then " + check.failed;
  } else {
    words += std::to_string(check.verified) + " runs of up to " + std::to_string(check.longest) +
             " tokens verified, " + std::to_string(check.elements) + " elements compared";
  }
  PhaseResult result = result_of(status, words);
  result.measured = {{"verified_runs", check.verified},
                     {"longest", check.longest},
                     {"compared", check.elements},
                     {"fallbacks", check.fallbacks},
                     {"settings", settings}};
  return result;
}

// On the model that ships: it knows the task. One row the CPU, one the device.
PhaseResult ioi(const CommonOptions& o) {
  CommonOptions shipped = o;
  shipped.model = "tiny-ioi";
  auto prompts = read_choice_prompts(resolve_model("tiny-ioi") / "prompts.jsonl");
  prompts.resize(std::min<std::size_t>(prompts.size(), 64));
  auto asked = [&] {
    HookedTransformer model = on_the_cpu(shipped);
    step("indirect objects on the CPU and on " + o.device);
    return compare(model, model.to_tokens(kPrompt), model.to_single_token(" Mary"),
                   model.to_single_token(" John"),
                   {.devices = {"cpu", o.device}, .prompts = prompts});
  };
  auto rows = asked();
  if (advises_tf32(rows.at(1).verdict.advice)) {
    shipped.matmul_precision = "tf32";
    rows = asked();
  }
  const CompareRow &cpu = rows.at(0), &device = rows.at(1);
  if (!device.error.empty()) return result_of(PhaseStatus::fail, first_line(device.error));
  double right = device.accuracy.asked == 0 ? 0
                                            : static_cast<double>(device.accuracy.right) /
                                                  static_cast<double>(device.accuracy.asked);
  auto signed_number = [](double x) { return (x >= 0 ? "+" : "") + fixed(x, 3); };
  PhaseResult result = passed("logit difference " + signed_number(device.logit_difference) +
                              " (CPU " + signed_number(cpu.logit_difference) + "), " +
                              percent(right) + " of " + std::to_string(device.accuracy.asked) +
                              " right, " + std::string(name_of(device.verdict.status)));
  result.measured = {{"logit_difference", number(device.logit_difference)},
                     {"cpu_logit_difference", number(cpu.logit_difference)},
                     {"share_right", right},
                     {"status", name_of(device.verdict.status)}};
  if (!(device.logit_difference > 0) && cpu.logit_difference > 0) {
    result.status = PhaseStatus::warn;
    result.details.push_back("the logit difference turned negative: the answer is lost");
  }
  if (device.verdict.status != Status::verified || device.accuracy.refused > 0) {
    result.status = PhaseStatus::fail;
    result.details.push_back(device.verdict.summary());
  }
  return result;
}

// Median milliseconds of a forward pass, unverified and verified.
std::pair<double, double> milliseconds(const HookedTransformer& model, const Tokens& tokens) {
  auto median_of = [&](VerifyMode mode) {
    std::vector<double> times;
    for (int i = 0; i < 6; ++i) {
      auto start = Clock::now();
      model.forward(tokens, {.verify = mode});
      if (i > 0) times.push_back(1e3 * seconds_since(start));  // the first one warms up
    }
    std::ranges::sort(times);
    return times[times.size() / 2];
  };
  return {median_of(VerifyMode::off), median_of(VerifyMode::exact)};
}

PhaseResult speed(const CommonOptions& o) {
  HookedTransformer cpu = on_the_cpu(o), device = on_the_device(o);
  Tokens tokens = some_tokens(cpu, std::min<std::int64_t>(64, cpu.config().n_ctx));
  step("forward passes on the CPU");
  auto [cpu_plain, cpu_checked] = milliseconds(cpu, tokens);
  step("forward passes on " + o.device);
  auto [plain, checked] = milliseconds(device, tokens);
  double times = cpu_plain / plain;
  PhaseResult result =
      passed(fixed(plain, 1) + " ms a pass of " + std::to_string(tokens.pos) + " tokens, " +
             fixed(checked, 1) + " verified; the CPU " + fixed(cpu_plain, 1) + " and " +
             fixed(cpu_checked, 1) + ": " + short_number(times) + " times as fast");
  result.measured = {{"device_ms", plain},     {"device_verified_ms", checked},
                     {"cpu_ms", cpu_plain},    {"cpu_verified_ms", cpu_checked},
                     {"times_as_fast", times}, {"tokens", tokens.pos}};
  if (times < 0.5) {
    result.status = PhaseStatus::warn;
    result.details.push_back("the CPU is faster for this model at this length");
  }
  return result;
}

PhaseResult swap(const CommonOptions&) {
  std::size_t total = field_of("/proc/meminfo", "MemTotal");
  if (total == 0) return result_of(PhaseStatus::skipped, "this system does not say");
  auto pages = [] {
    return field_of("/proc/vmstat", "pswpin") + field_of("/proc/vmstat", "pswpout");
  };
  std::size_t before = pages();
  std::this_thread::sleep_for(std::chrono::seconds(1));
  std::size_t moved = pages() - before, available = field_of("/proc/meminfo", "MemAvailable");
  PhaseResult result =
      passed(bytes_in_words(available) + " of " + bytes_in_words(total) + " available, " +
             std::to_string(moved) + " pages swapped in a second");
  result.measured = {{"available_bytes", available}, {"total_bytes", total}, {"pages", moved}};
  if (moved > 100 || available < total / 20) {
    result.status = PhaseStatus::warn;
    result.measured["settings"] = {"less in memory: the system is short of it"};
  }
  return result;
}

// Which dtypes the device is known to refuse, in PyTorch's words.
json dtype_table(const std::string& device) {
  json table = json::object();
  for (const char* dtype : {"float32", "float64", "bfloat16", "float16", "complex64"}) {
    auto refused = why_not(device.substr(0, device.find(':')), running_macos(), dtype);
    table[dtype] = refused ? json(*refused) : json();
  }
  return table;
}

// One prompt as long as the model takes, of which nothing is kept, by arithmetic alone.
PhaseResult plan(const CommonOptions& o) {
  PreflightOptions options{.load = {.device = o.device, .dtype = dtype_from_name(o.dtype)},
                           .names = std::vector<std::string>{}};
  if (o.no_processing) options.load.processing = Processing::none();
  Preflight p = preflight(resolve_model(o.model), options);
  std::istringstream lines(in_words(p));
  PhaseResult result = passed("");
  std::getline(lines, result.summary);
  for (std::string line; std::getline(lines, line);) result.details.push_back(line);
  result.measured = to_json(p);
  result.measured.erase("tensors");
  result.measured["dtype_table"] = dtype_table(o.device);
  if (p.fits()) return result;
  // What is short may be the memory, which p.longest_prompt knows nothing of.
  std::int64_t good = 0, bad = p.pos;
  while (bad - good > 1) {
    options.pos = good + (bad - good) / 2;
    (preflight(resolve_model(o.model), options).fits() ? good : bad) = *options.pos;
  }
  auto setting = length_setting(good, bad);
  result.status = setting ? PhaseStatus::warn : PhaseStatus::fail;
  result.measured["longest"] = good;
  if (setting) result.measured["settings"] = {*setting};
  return result;
}

using Phase = PhaseResult (*)(const CommonOptions&);
const std::map<std::string_view, Phase> kPhases{{"availability", availability},
                                                {"dependencies", dependencies},
                                                {"operators", operators},
                                                {"dtypes", dtypes},
                                                {"accuracy", accuracy},
                                                {"copies", copies},
                                                {"tokenizer", tokenizer},
                                                {"plan", plan},
                                                {"load", loading},
                                                {"transfer", transfer},
                                                {"forward", forward},
                                                {"backward", backward},
                                                {"ioi", ioi},
                                                {"speed", speed},
                                                {"swap", swap}};

}  // namespace

PhaseResult run_phase(const std::string& name, const CommonOptions& options) {
  Phase phase = kPhases.at(phase_info(name).name);
  setenv("LENSCPP_ALLOW_MPS", "1", 1);  // said by the parent: here the last line is the step
  auto start = Clock::now();
  PhaseResult result;
  try {
    result = phase(options);
  } catch (const c10::Error& e) {
    result = result_of(PhaseStatus::fail, first_line(e.what_without_backtrace()));
  } catch (const std::exception& e) {
    result = result_of(PhaseStatus::fail, first_line(e.what()));
  }
  result.name = name;
  result.seconds = seconds_since(start);
  return result;
}

}  // namespace lenscpp::command
