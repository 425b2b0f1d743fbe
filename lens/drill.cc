// One run serves the judge of harm and the verifier: a sink that records stands before the one that
// checks.
#include "lens/drill.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
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

// A dtype and a shape, with what honest runs of it look like.
struct Setting {
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
  options.verify = VerifyMode::exact;
  model.run_with_cache(tokens, options);
  return recording;
}

// The same in another summation order, its axes back where they were.
std::vector<std::pair<TensorId, Array>> reordered(const HookedTransformer& model,
                                                  const Tokens& tokens, RunOptions options,
                                                  std::uint64_t seed) {
  Reordering order(model.config(), seed);
  HookedTransformer other(std::make_shared<const Weights>(order.apply(model.weights())), {},
                          model.options());
  Recording recording;
  options.watch = &recording;
  other.run_unverified(tokens, options);
  std::vector<std::pair<TensorId, Array>> run;
  for (const auto& [id, value] : recording.tensors()) run.emplace_back(id, order.undo(id, value));
  return run;
}

Setting set_up(const HookedTransformer& model, DType dtype, const Tokens& tokens,
               const RunOptions& run, const DrillOptions& o) {
  HookedTransformer moved = model.moved(model.options().device, dtype);
  Recording clean = recorded(moved, tokens, run);
  HarmJudge judge(clean);
  for (std::int64_t i = 1; i <= o.honest_runs; ++i)
    judge.add_honest(reordered(moved, tokens, run, o.seed + static_cast<std::uint64_t>(i)));
  std::vector<TensorId> tensors;
  for (const auto& [id, value] : clean.tensors()) tensors.push_back(id);
  return {std::move(moved), tokens, run, std::move(judge), std::move(tensors)};
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
    if (run.judgement.first && point.id == *run.judgement.first) run.of_bound = point.worst_ratio;
}

DrillRun run_one(const Setting& s, const Task& task) {
  DrillRun run{.fault = fault_in_words(task.fault),
               .place = task.place,
               .dtype = s.model.options().dtype,
               .batch = s.tokens.batch,
               .pos = s.tokens.pos};
  FaultSpec spec = task.fault;
  spec.hook = hook_name(task.place.site, task.place.layer);
  auto injector = std::make_shared<FaultInjector>(std::vector{spec}, s.model.config());
  Recording recording;
  RunOptions options = s.options;
  options.interference = interference_of(injector);
  options.watch = &recording;
  options.verify = VerifyMode::exact;
  std::optional<Verdict> verdict;
  try {
    verdict = s.model.run_with_cache(s.tokens, options).verdict();
  } catch (const VerificationFailed& e) {
    verdict = e.verdict();
  } catch (const c10::Error& e) {
    run.error = e.what_without_backtrace();
    run.refused = true;
  }
  for (const auto& firing : injector->log()) run.changed += firing.changed;
  run.judgement = s.judge.judge(recording);
  if (verdict) fill_from(run, *verdict);
  return run;
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
  FaultInjector(faults, config);  // refuses unknown names and parameters
  if (o.dtypes.empty()) refuse("no dtype");
  for (DType dtype : o.dtypes)
    if (dtype == DType::i64) refuse("a model cannot be int64");
  if (o.batches.empty() || std::ranges::any_of(o.batches, [](auto b) { return b < 1; }))
    refuse("batches are whole numbers from 1 on");
  if (o.honest_runs < 1) refuse("honest_runs " + std::to_string(o.honest_runs) + "; needed: 1 on");
  if (o.sample && *o.sample < 1) refuse("sample " + std::to_string(*o.sample) + "; needed: 1 on");
}

// About `wanted` of the tasks: of each fault in turn the next that the seed draws.
std::vector<Task> sampled(std::vector<Task> tasks, std::int64_t wanted, std::mt19937_64& random) {
  for (std::size_t i = tasks.size(); i > 1; --i) std::swap(tasks[i - 1], tasks[random() % i]);
  std::map<std::string, std::vector<Task>> by_fault;
  for (Task& task : tasks) by_fault[fault_in_words(task.fault)].push_back(std::move(task));
  std::vector<Task> chosen;
  for (bool any = true; any && std::ssize(chosen) < wanted;) {
    any = false;
    for (auto& [fault, rest] : by_fault) {
      if (rest.empty() || std::ssize(chosen) >= wanted) continue;
      chosen.push_back(std::move(rest.back()));
      rest.pop_back();
      any = true;
    }
  }
  return chosen;
}

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
      {.name = "mask_off_by_one", .parameters = {{"by", -1}}}};
  std::vector<FaultSpec> faults;
  for (const FaultInfo& row : fault_catalogue()) {
    faults.push_back({.name = std::string(row.name)});
    for (const FaultSpec& other : variations)
      if (other.name == row.name) faults.push_back(other);
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

DrillReport drill(const HookedTransformer& model, const DrillOptions& o) {
  auto start = std::chrono::steady_clock::now();
  const Config& config = model.config();
  std::vector<FaultSpec> faults = o.faults.empty() ? drill_faults() : o.faults;
  check(o, faults, config);
  for (FaultSpec& fault : faults) fault.seed = o.seed;
  std::set<Site> sites = sites_of(o, config);
  std::set<std::int64_t> layers = layers_of(o, config);
  std::vector<std::int64_t> lengths = lengths_of(o, config);
  RunOptions options{.names = asked_for(sites, config)};
  auto wanted = [&](const TensorId& id) {
    if (!sites.empty() && !sites.contains(id.site)) return false;
    return layers.empty() || (info(id.site).per_layer && layers.contains(id.layer));
  };
  DrillReport report{.model = model.name(),
                     .device = model.options().device,
                     .seed = o.seed,
                     .honest_runs = o.honest_runs};
  auto settings = static_cast<std::int64_t>(o.dtypes.size() * lengths.size() * o.batches.size());
  std::int64_t nth = 0;
  std::mt19937_64 random(o.seed);
  for (DType dtype : o.dtypes)
    for (std::int64_t length : lengths)
      for (std::int64_t batch : o.batches) {
        Setting s = set_up(model, dtype, drawn_tokens(config, batch, length, o.seed), options, o);
        std::vector<Task> tasks;
        for (const FaultSpec& fault : faults)
          for (const TensorId& id : s.tensors)
            if (wanted(id) && fault_info(fault.name).applies(id.site)) tasks.push_back({fault, id});
        if (o.sample) {
          std::int64_t before = *o.sample * nth / settings;
          tasks = sampled(std::move(tasks), *o.sample * (nth + 1) / settings - before, random);
        }
        for (std::size_t i = 0; i < tasks.size(); ++i) {
          report.runs.push_back(run_one(s, tasks[i]));
          auto n = static_cast<std::int64_t>(tasks.size());
          if (o.progress) o.progress(nth * n + static_cast<std::int64_t>(i) + 1, settings * n);
        }
        nth += 1;
      }
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace lenscpp
