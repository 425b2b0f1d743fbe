// One run serves the judge of harm and the verifier: a sink that records stands before the one that
// checks.
#include "lens/drill.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <functional>
#include <random>
#include <set>

#include "hooks/nearest.h"
#include "lens/fault_injection.h"
#include "verify/device/reordering.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kUsualLength = 15;  // no multiple of 32, as kernels like them

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[drill] " + what);
}

// The model on one device in one dtype, with what honest runs of one batch look like there.
struct Bench {
  HookedTransformer model;
  Tokens tokens;
  RunOptions options;  // the same for every run
  HarmJudge judge;
  std::vector<TensorId> tensors;  // in execution order
};

Tokens drawn_tokens(const Config& config, std::int64_t batch, std::int64_t pos,
                    std::uint64_t seed) {
  std::seed_seq seeds{seed & 0xffffffffu, seed >> 32, static_cast<std::uint64_t>(batch),
                      static_cast<std::uint64_t>(pos)};
  std::mt19937_64 random(seeds);
  Tokens tokens{.batch = batch, .pos = pos, .ids = {}};
  for (std::int64_t i = 0; i < batch * pos; ++i)
    tokens.ids.push_back(
        static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(config.d_vocab)));
  return tokens;
}

// The clean run, verified.
Recording recorded(const HookedTransformer& model, const Tokens& tokens, RunOptions options) {
  Recording recording;
  options.watch = &recording;
  model.run_with_cache(tokens, options);
  return recording;
}

// The same in another summation order, its axes back where they were; verified, since a wrong one
// would allow faults as much.
std::vector<std::pair<TensorId, Array>> reordered(const HookedTransformer& model,
                                                  const Tokens& tokens, RunOptions options,
                                                  std::uint64_t seed) {
  Reordering order(model.config(), seed);
  HookedTransformer other(std::make_shared<const Weights>(order.apply(model.weights())), {},
                          model.options());
  Recording recording;
  options.watch = &recording;
  other.run_with_cache(tokens, options);
  std::vector<std::pair<TensorId, Array>> run;
  for (const auto& [id, value] : recording.tensors()) run.emplace_back(id, order.undo(id, value));
  return run;
}

Bench set_up(const HookedTransformer& model, const Tokens& tokens, const RunOptions& run,
             const DrillOptions& o, const std::function<void()>& tick) {
  Recording clean = recorded(model, tokens, run);
  HarmJudge judge(clean);
  for (std::int64_t i = 1; i <= o.honest_runs; ++i) {
    judge.add_honest(reordered(model, tokens, run, o.seed + static_cast<std::uint64_t>(i)));
    tick();
  }
  std::vector<TensorId> tensors;
  for (const auto& [id, value] : clean.tensors()) tensors.push_back(id);
  return {model, tokens, run, std::move(judge), std::move(tensors)};
}

// One fault at one tensor.
struct Task {
  FaultSpec fault;
  TensorId place;
};

void fill_from(DrillRun& run, const Verdict& verdict) {
  const Point* failure = verdict.first_failure();
  run.refused = verdict.status != Status::verified;
  if (failure != nullptr) {
    run.named = to_string(failure->id);
    run.hint = failure->hint;
  }
  for (const Point& point : verdict.points)
    if (run.judgement.first && point.id == *run.judgement.first) {
      run.of_bound = point.worst_ratio;
      run.projected = point.projected > 0;
    }
}

// Errors of the device end a run, not the drill: whoever runs there is told as well.
std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& e) {
    std::string what = e.what_without_backtrace();
    return what.substr(0, what.find('\n'));
  }
  return "";
}

DrillRun run_one(const Bench& bench, const Task& task) {
  DrillRun run{.fault = fault_in_words(task.fault),
               .in_device = is_device_fault(task.fault.name),
               .place = task.place,
               .dtype = bench.model.options().dtype,
               .batch = bench.tokens.batch,
               .pos = bench.tokens.pos};
  FaultSpec spec = task.fault;
  spec.hook = hook_name(task.place.site, task.place.layer);
  InjectedFaults injected({spec}, bench.model.config());
  Recording recording;
  RunOptions options = bench.options;
  options.interference = injected.interference();
  options.device_faults = injected.device_faults();
  options.watch = &recording;
  std::optional<Verdict> verdict;
  run.error = error_of([&] {
    try {
      verdict = bench.model.run_with_cache(bench.tokens, options).verdict();
    } catch (const VerificationFailed& e) {
      verdict = e.verdict();
    }
  });
  for (const auto& firing : injected.log({})) {
    if (run.changed == 0) run.fired_at = firing.name;
    run.changed += firing.changed;
  }
  if (!verdict) return run;
  run.judgement = bench.judge.judge(recording);
  fill_from(run, *verdict);
  return run;
}

// In the computation of which tensors a fault of the device fires at all.
std::vector<TensorId> fires_at(const Bench& bench, const FaultSpec& fault) {
  auto faults = std::make_shared<DeviceFaults>(std::vector{fault}, bench.model.config());
  RunOptions options = bench.options;
  options.device_faults = faults;
  error_of([&] { bench.model.run_unverified(bench.tokens, options); });
  std::set<TensorId> fired;
  for (const auto& firing : faults->log())
    if (firing.id) fired.insert(*firing.id);
  std::vector<TensorId> places;
  for (const TensorId& id : bench.tensors)
    if (fired.contains(id)) places.push_back(id);
  return places;
}

std::optional<Site> site_of(const std::string& name, const Config& config) {
  std::string full = act_name(name);
  std::string_view rest = full;
  if (rest.starts_with("blocks."))
    rest.remove_prefix(std::min(rest.find('.', 7), rest.size() - 1) + 1);
  for (const SiteInfo& row : all_sites())
    if (row.name == rest && exists(row.site, config)) return row.site;
  return {};
}

// Empty: all of them.
std::set<Site> sites_of(const DrillOptions& o, const Config& config) {
  std::set<Site> sites;
  std::vector<std::string> known;
  for (const SiteInfo& row : all_sites())
    if (exists(row.site, config)) known.emplace_back(row.name);
  for (const std::string& name : o.sites) {
    auto site = site_of(name, config);
    if (!site)
      refuse("no hook point " + in_quotes(name) + "; nearest: " + nearest_names(name, known));
    sites.insert(*site);
  }
  return sites;
}

std::set<std::int64_t> layers_of(const DrillOptions& o, const Config& config) {
  std::set<std::int64_t> layers;
  for (std::int64_t layer : o.layers) {
    std::int64_t l = layer < 0 ? layer + config.n_layers : layer;
    if (l < 0 || l >= config.n_layers)
      throw std::out_of_range("[drill] layer " + std::to_string(layer) +
                              " out of range: the model has " + std::to_string(config.n_layers) +
                              " layers");
    layers.insert(l);
  }
  return layers;
}

// On-demand hook points are computed when they are asked for by name; nothing is kept otherwise.
std::vector<std::string> asked_for(const std::set<Site>& sites, const Config& config) {
  std::vector<std::string> names;
  for (Site site : sites)
    if (info(site).presence == Presence::on_demand)
      for (std::int64_t l = 0; l < (info(site).per_layer ? config.n_layers : 1); ++l)
        names.push_back(hook_name(site, l));
  return names;
}

std::vector<std::int64_t> lengths_of(const DrillOptions& o, const Config& config) {
  std::vector<std::int64_t> lengths = o.lengths;
  if (lengths.empty())
    for (std::int64_t n : {std::int64_t{1}, std::min(kUsualLength, config.n_ctx), config.n_ctx})
      if (std::ranges::find(lengths, n) == lengths.end()) lengths.push_back(n);
  for (std::int64_t n : lengths)
    if (n < 1 || n > config.n_ctx)
      refuse("length " + std::to_string(n) + "; allowed: 1 to " + std::to_string(config.n_ctx));
  return lengths;
}

void check(const DrillOptions& o, const std::vector<FaultSpec>& faults, const Config& config) {
  for (const FaultSpec& fault : faults)
    if (fault.hook || fault.layer)
      refuse(fault.name + " has a place of its own; sites and layers say where all faults go");
  InjectedFaults(faults, config);  // refuses unknown names and parameters
  if (o.verify == VerifyMode::off) refuse("verification is off: nothing could be refused");
  if (o.dtypes.empty()) refuse("no dtype");
  for (DType dtype : o.dtypes)
    if (dtype == DType::i64) refuse("a model cannot be int64");
  if (o.batches.empty() || std::ranges::any_of(o.batches, [](auto b) { return b < 1; }))
    refuse("batches are whole numbers from 1 on");
  if (o.honest_runs < 1) refuse("honest_runs " + std::to_string(o.honest_runs) + "; needed: 1 on");
  if (o.sample && *o.sample < 1) refuse("sample " + std::to_string(*o.sample) + "; needed: 1 on");
}

// What is drawn for a fault depends on no other fault.
std::mt19937_64 random_of(const std::string& fault, std::uint64_t seed, std::int64_t setting) {
  std::vector<std::uint64_t> numbers(fault.begin(), fault.end());
  for (std::uint64_t n : {seed & 0xffffffffu, seed >> 32, static_cast<std::uint64_t>(setting)})
    numbers.push_back(n);
  std::seed_seq seeds(numbers.begin(), numbers.end());
  return std::mt19937_64(seeds);
}

// The drill of one model: its settings one after the other.
class Drill {
 public:
  Drill(const HookedTransformer& model, const DrillOptions& o)
      : model_(model),
        o_(o),
        config_(model.config()),
        faults_(o.faults.empty() ? drill_faults() : o.faults) {
    check(o, faults_, config_);
    for (FaultSpec& fault : faults_) fault.seed = o.seed;
    sites_ = sites_of(o, config_);
    layers_ = layers_of(o, config_);
  }

  DrillReport run() {
    auto start = std::chrono::steady_clock::now();
    report_ = {.model = model_.name(),
               .device = model_.options().device,
               .seed = o_.seed,
               .honest_runs = o_.honest_runs};
    std::vector<std::int64_t> lengths = lengths_of(o_, config_);
    settings_ = static_cast<std::int64_t>(o_.dtypes.size() * lengths.size() * o_.batches.size());
    for (DType dtype : o_.dtypes)
      for (std::int64_t length : lengths)
        for (std::int64_t batch : o_.batches) {
          in_setting(dtype, drawn_tokens(config_, batch, length, o_.seed));
          setting_ += 1;
        }
    say_what_never_fired();
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::move(report_);
  }

 private:
  bool any(bool in_device) const {
    return std::ranges::any_of(
        faults_, [&](const FaultSpec& f) { return is_device_fault(f.name) == in_device; });
  }
  bool wanted(const TensorId& id) const {
    if (!sites_.empty() && !sites_.contains(id.site)) return false;
    return layers_.empty() || (info(id.site).per_layer && layers_.contains(id.layer));
  }
  std::optional<Bench> bench(const std::string& device, DType dtype, const Tokens& tokens) {
    RunOptions options{.verify = o_.verify, .names = asked_for(sites_, config_)};
    return set_up(model_.moved(device, dtype), tokens, options, o_, [&] { tell(); });
  }

  void in_setting(DType dtype, const Tokens& tokens) {
    std::optional<Bench> at_tap, in_device;
    if (any(false)) at_tap = bench(model_.options().device, dtype, tokens);
    if (any(true)) in_device = bench("simulated", dtype, tokens);
    if (at_tap) describe(*at_tap);
    if (in_device) describe(*in_device);
    std::vector<Task> tasks;
    for (const FaultSpec& fault : faults_) {
      std::vector<TensorId> places = is_device_fault(fault.name)
                                         ? places_in_device(*in_device, fault)
                                         : places_at_tap(*at_tap, fault);
      tell();
      std::erase_if(places, [&](const TensorId& id) { return !wanted(id); });
      for (const TensorId& id : sampled(std::move(places), fault)) tasks.push_back({fault, id});
    }
    // Settings to come are taken for as long as this one.
    expected_ = std::ssize(report_.runs) + std::ssize(tasks) * (settings_ - setting_);
    for (const Task& task : tasks) {
      report_.runs.push_back(
          run_one(is_device_fault(task.fault.name) ? *in_device : *at_tap, task));
      const DrillRun& run = report_.runs.back();
      if (run.fired() || run.ended()) fired_.insert(run.fault);
      tell();
    }
  }

  void tell() const {
    if (o_.progress) o_.progress(std::ssize(report_.runs), expected_);
  }

  void describe(const Bench& bench) {
    auto [spread, where] = bench.judge.relative_spread();
    // Far beyond what other orders of summation do: then reordered weights are another model's.
    constexpr double kAnotherModel = 1e-2;
    bool wide =
        bench.model.options().dtype == DType::f32 || bench.model.options().dtype == DType::f64;
    if (wide && !(spread < kAnotherModel))
      throw std::runtime_error(
          "[drill] honest runs of this model in other orders of summation differ "
          "by " +
          std::to_string(spread) + " of " + where + ": nothing can be said of harm");
    report_.settings.push_back({.device = bench.model.options().device,
                                .dtype = bench.model.options().dtype,
                                .batch = bench.tokens.batch,
                                .pos = bench.tokens.pos,
                                .spread = spread,
                                .where = where});
  }

  static std::vector<TensorId> places_at_tap(const Bench& bench, const FaultSpec& fault) {
    std::vector<TensorId> places;
    for (const TensorId& id : bench.tensors)
      if (fault_info(fault.name).applies(id.site)) places.push_back(id);
    return places;
  }

  // This setting's part of a fault's runs.
  std::vector<TensorId> sampled(std::vector<TensorId> places, const FaultSpec& fault) const {
    if (!o_.sample) return places;
    auto wanted = static_cast<std::size_t>(*o_.sample * (setting_ + 1) / settings_ -
                                           *o_.sample * setting_ / settings_);
    std::mt19937_64 random = random_of(fault_in_words(fault), o_.seed, setting_);
    for (std::size_t i = places.size(); i > 1; --i) std::swap(places[i - 1], places[random() % i]);
    places.resize(std::min(places.size(), wanted));
    return places;
  }

  // A fault that fires whatever its condition says is left out where the condition holds anyway.
  std::vector<TensorId> places_in_device(const Bench& bench, const FaultSpec& fault) {
    std::vector<TensorId> places = fires_at(bench, fault);
    if (!places.empty()) could_fire_.insert(fault_in_words(fault));
    FaultSpec conditional = fault;
    bool always = conditional.parameters.erase("always") > 0;
    if (!always || fires_at(bench, conditional) != places) return places;
    same_places_.insert(fault_in_words(fault));
    return {};
  }

  std::string why_not(const FaultSpec& fault, const std::string& words) const {
    auto of_it = [&](const DrillRun& run) { return run.fault == words; };
    if (auto n = std::ranges::count_if(report_.runs, of_it); n > 0)
      return "changed no bit in " + std::to_string(n) + " runs";
    if (is_device_fault(fault.name) && !could_fire_.contains(words))
      return fault.parameters.contains("always")
                 ? "changes no bit here even without its condition"
                 : "its condition was never met: " +
                       std::string(device_fault_info(fault.name).trigger);
    if (same_places_.contains(words)) return "not run: the same places as without always";
    return "not run: no place where it can be was asked for, or drawn";
  }
  void say_what_never_fired() {
    for (const FaultSpec& fault : faults_)
      if (std::string words = fault_in_words(fault); !fired_.contains(words))
        report_.never_fired.emplace_back(words, why_not(fault, words));
  }

  const HookedTransformer& model_;
  const DrillOptions& o_;
  const Config& config_;
  std::vector<FaultSpec> faults_;
  std::set<Site> sites_;
  std::set<std::int64_t> layers_;
  std::int64_t setting_ = 0, settings_ = 0, expected_ = 0;
  std::set<std::string> fired_;       // in a run of the report, or ended one
  std::set<std::string> could_fire_;  // faults of the device, anywhere
  std::set<std::string> same_places_;
  DrillReport report_;
};

}  // namespace

std::vector<FaultSpec> drill_faults() {
  const std::vector<FaultSpec> variations = {
      {.name = "row", .parameters = {{"garbage", 1}}},
      {.name = "head", .parameters = {{"garbage", 1}}},
      {.name = "tile", .parameters = {{"garbage", 1}}},
      {.name = "inf", .parameters = {{"sign", -1}}},
      {.name = "shift_rows", .parameters = {{"by", -1}}},
      {.name = "round_bits", .parameters = {{"bits", 8}}},
      // Small ones, for what lies between.
      {.name = "round_bits", .parameters = {{"bits", 16}}},
      {.name = "scale", .parameters = {{"factor", 1.001}}},
      {.name = "one_element", .parameters = {{"delta", 0.001}}},
      {.name = "mask_off_by_one", .parameters = {{"by", -1}}},
      // What meets its condition in a forward pass of this library only so.
      {.name = "S4", .parameters = {{"rows", 1}}},
      {.name = "Z10", .parameters = {{"bytes", 64}}},
      {.name = "M3", .parameters = {{"factor", 2}}},
      {.name = "M11", .parameters = {{"over", 0}}},
      {.name = "P1", .parameters = {{"variance", 1e3}}},
      {.name = "P3", .parameters = {{"beyond", 1}}},
      {.name = "P10", .parameters = {{"factor", 2}}}};
  std::vector<FaultSpec> faults;
  for (const FaultInfo& row : fault_catalogue()) {
    faults.push_back({.name = std::string(row.name)});
    for (const FaultSpec& other : variations)
      if (other.name == row.name) faults.push_back(other);
  }
  for (const DeviceFaultInfo& row : device_fault_catalogue()) {
    std::string id(row.id);
    faults.push_back({.name = id});
    faults.push_back({.name = id, .parameters = {{"always", 1}}});
    for (const FaultSpec& other : variations)
      if (other.name == id) faults.push_back(other);
    if (std::ranges::find(row.parameters, "transposed", &FaultParameter::name) !=
        row.parameters.end())
      faults.push_back({.name = id, .parameters = {{"transposed", 1}}});
  }
  return faults;
}

std::string fault_in_words(const FaultSpec& fault) {
  std::string text = fault.name;
  for (const auto& [name, value] : fault.parameters) {
    std::array<char, 32> digits{};
    auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
    text += (text.size() == fault.name.size() ? ":" : ",") + name + "=";
    text.append(digits.data(), end);
  }
  return text;
}

DrillReport drill(const HookedTransformer& model, const DrillOptions& options) {
  return Drill(model, options).run();
}

}  // namespace lenscpp
