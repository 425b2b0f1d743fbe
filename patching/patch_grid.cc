// The sweep: cells into groups, groups into verified runs, runs into values.
#include "patching/patch_grid.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>

#include "hooks/nearest.h"
#include "lens/torch_parallel.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[patch_grid] " + what);
}

std::string short_number(double value) {
  std::array<char, 32> text{};
  auto end =
      std::to_chars(text.data(), text.data() + text.size(), value, std::chars_format::general, 3)
          .ptr;
  return {text.data(), end};
}

// An error over its bound. Sums are rounded once, so that the largest is all but 1: never written
// as if it were 1.
std::string short_ratio(double ratio) {
  std::string text = short_number(ratio);
  return ratio < 1 && text == "1" ? "0.999" : text;
}

std::string axis_names(Site site) {
  std::string names;
  for (Axis axis : grid_axes(site))
    names += (names.empty() ? "" : ", ") + std::string(name_of(axis));
  return names.empty() ? "none" : names;
}

// What the user calls head is kv_head for keys and values, and pos is query for patterns.
Axis of_site(Site site, Axis axis) {
  auto has = [&](Axis one) {
    return std::ranges::find(info(site).axes, one) != info(site).axes.end();
  };
  if (axis == Axis::head && !has(Axis::head) && has(Axis::kv_head)) return Axis::kv_head;
  if (axis == Axis::pos && !has(Axis::pos) && has(Axis::query)) return Axis::query;
  return axis;
}

// The pair must be two plain runs of this very model, over whole prompts of equal length.
void check_run(const HookedTransformer& model, const RunRecord& r, const std::string& which) {
  if (r.model_digest != model.digest() || r.dtype != name_of(model.options().dtype))
    refuse("the " + which + " run is of another model: " + r.model + " in " + r.dtype +
           " (digest " + r.model_digest.substr(0, 12) + "); needed: " + model.name() + " in " +
           std::string(name_of(model.options().dtype)) + " (digest " +
           model.digest().substr(0, 12) + "), processed in the same way");
  if (!r.plan.empty() || !r.hooks.empty())
    refuse("the " + which + " run was edited itself (" + std::to_string(r.plan.size()) +
           " edits, " + std::to_string(r.hooks.size()) + " hooks); needed: a run without a plan");
  if (r.tokens.empty() || r.first_layer != 0 || r.end_layer != model.config().n_layers)
    refuse("the " + which + " run is not one from tokens to logits; needed: all layers");
}

// A classifier's logits of labels stand at no position: metrics see them at one.
Array at_positions(const Array& logits) {
  if (logits.rank() == 3) return logits;
  return logits.reshaped({logits.size(0), 1, logits.size(1)});
}

void check_site(Site site, const Config& config) {
  const SiteInfo& row = info(site);
  if (row.presence != Presence::internal && row.stored != Stored::ids && exists(site, config))
    return;
  std::string allowed;
  for (const SiteInfo& one : all_sites())
    if (one.presence != Presence::internal && one.stored != Stored::ids && exists(one.site, config))
      allowed += (allowed.empty() ? "" : ", ") + short_name(one.site);
  refuse(short_name(site) + " cannot be patched in this model; allowed: " + allowed);
}

std::vector<Axis> checked_axes(Site site, const std::vector<Axis>& over) {
  std::vector<Axis> axes;
  auto allowed = grid_axes(site);
  for (Axis axis : over) {
    axes.push_back(of_site(site, axis));
    if (std::ranges::find(allowed, axes.back()) == allowed.end())
      refuse(short_name(site) + " has no axis " + std::string(name_of(axis)) +
             "; allowed: " + axis_names(site));
    if (std::ranges::count(axes, axes.back()) > 1)
      refuse("the axis " + std::string(name_of(axis)) + " is given twice");
  }
  if (info(site).per_layer && std::ranges::find(axes, Axis::layer) == axes.end())
    refuse("over: layer is missing; " + short_name(site) + " has " + axis_names(site));
  if (axes.empty()) refuse("over is empty; " + short_name(site) + " has " + axis_names(site));
  return axes;
}

// The one token that all prompts have at a position, as text.
std::optional<std::string> shared_token(const HookedTransformer& model, const RunRecord& run,
                                        std::int64_t pos) {
  std::int64_t id = run.tokens[static_cast<std::size_t>(pos)];
  for (std::int64_t b = 1; b < run.batch; ++b)
    if (run.tokens[static_cast<std::size_t>(b * run.pos + pos)] != id) return {};
  if (!model.has_tokenizer() || !model.tokenizer().contains(id))
    return "<id " + std::to_string(id) + ">";
  return model.tokenizer().token(id);
}

std::string position_label(const HookedTransformer& model, const RunRecord& clean,
                           const RunRecord& corrupted, std::int64_t pos) {
  auto of_clean = shared_token(model, clean, pos),
       of_corrupted = shared_token(model, corrupted, pos);
  std::string label = std::to_string(pos);
  if (!of_clean || !of_corrupted) return label;
  label += ":" + *of_clean;
  return *of_clean == *of_corrupted ? label : label + "/" + *of_corrupted;
}

// An axis that GridOptions::positions chooses from.
bool is_choosable(Axis axis) { return axis == Axis::pos || axis == Axis::query; }

bool is_position(Axis axis) {
  return axis == Axis::pos || axis == Axis::query || axis == Axis::key;
}

// As indices from the start, each once.
std::vector<std::int64_t> checked_positions(const std::vector<std::int64_t>& given,
                                            std::int64_t pos) {
  std::vector<std::int64_t> positions;
  for (std::int64_t p : given) {
    positions.push_back(p < 0 ? p + pos : p);
    if (positions.back() < 0 || positions.back() >= pos)
      throw std::out_of_range("[patch_grid] position " + std::to_string(p) +
                              " out of range: the prompts have " + std::to_string(pos) + " tokens");
    if (std::ranges::count(positions, positions.back()) > 1)
      refuse("the position " + std::to_string(p) + " is given twice");
  }
  if (positions.empty()) refuse("positions is empty; needed: at least one");
  return positions;
}

double mean_of_values(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// [batch, 1, ...] of [batch, pos, ...].
Array at_position(const Array& x, std::int64_t pos) {
  std::int64_t n = x.size(1), p = pos < 0 ? pos + n : pos;
  Shape one = x.shape();
  one[1] = 1;
  MutableArray result(one, x.dtype());
  auto row = static_cast<std::int64_t>(x.nbytes()) / (x.size(0) * n);
  for (std::int64_t b = 0; b < x.size(0); ++b)
    std::copy_n(x.bytes() + (b * n + p) * row, row, result.bytes() + b * row);
  return std::move(result).freeze();
}

bool holds_all(const VerifiedCache& run, const std::vector<std::string>& names) {
  return std::ranges::all_of(names, [&](const std::string& name) {
    const auto* entry = run.activations().find(name);
    return entry != nullptr && entry->value.size(0) == run.record().batch &&
           (name.ends_with("attn_scores") || name.ends_with("pattern")
                ? entry->value.size(2)
                : entry->value.size(1)) == run.record().pos;
  });
}

}  // namespace

std::string_view name_of(Direction direction) {
  switch (direction) {
    case Direction::denoise:
      return "denoise";
    case Direction::noise:
      return "noise";
  }
  throw std::logic_error("[patch_grid] not a Direction");
}

Direction direction_from_name(std::string_view name) {
  if (name == "denoise") return Direction::denoise;
  if (name == "noise") return Direction::noise;
  refuse("direction " + in_quotes(name) + "; allowed: denoise, noise");
}

std::vector<Axis> grid_axes(Site site) {
  std::vector<Axis> axes;
  if (info(site).per_layer) axes.push_back(Axis::layer);
  for (Axis axis : info(site).axes)
    if (is_position(axis) || axis == Axis::head || axis == Axis::kv_head) axes.push_back(axis);
  return axes;
}

void check_grid(Site site, const std::vector<Axis>& over, const Config& config) {
  check_site(site, config);
  checked_axes(site, over);
}

std::string short_name(Site site) {
  auto last_part = [](std::string_view name) {
    std::string_view part = name.substr(name.rfind('.') + 1);
    return part.starts_with("hook_") ? part.substr(5) : part;
  };
  auto same = [&](const SiteInfo& row) {
    return last_part(row.name) == last_part(info(site).name);
  };
  bool unique = std::ranges::count_if(all_sites(), same) == 1;
  return std::string(unique ? last_part(info(site).name) : info(site).name);
}

Site grid_site(std::string_view name, const Config& config) {
  std::string_view bare = name.starts_with("head_") ? name.substr(5) : name;
  if (name.starts_with("blocks.")) {
    Site site = find_hook(name, std::nullopt, "", config).site;
    refuse(in_quotes(name) + " names a layer; a grid goes over all of them: give " +
           in_quotes(short_name(site)));
  }
  auto called_so = [&](const SiteInfo& row) {
    return row.presence != Presence::internal && (row.name == name || short_name(row.site) == bare);
  };
  for (bool there : {true, false})  // what the model has first; what it has not is refused by name
    for (const SiteInfo& row : all_sites())
      if (called_so(row) && exists(row.site, config) == there) return row.site;
  return find_hook(name, 0, "", config).site;
}

std::vector<std::string> grid_hooks(Site site, const Config& config) {
  std::vector<std::string> names;
  for (std::int64_t l = 0; l < (info(site).per_layer ? config.n_layers : 1); ++l)
    names.push_back(hook_name(site, l));
  return names;
}

Axis grid_axis(Site site, std::string_view name) {
  constexpr std::pair<std::string_view, Axis> kNames[] = {
      {"layer", Axis::layer},     {"pos", Axis::pos},         {"head", Axis::head},
      {"head_index", Axis::head}, {"kv_head", Axis::kv_head}, {"query", Axis::query},
      {"dest_pos", Axis::query},  {"key", Axis::key},         {"src_pos", Axis::key}};
  for (auto [known, axis] : kNames) {
    if (known != name) continue;
    auto axes = grid_axes(site);
    if (std::ranges::find(axes, of_site(site, axis)) != axes.end()) return of_site(site, axis);
  }
  refuse(short_name(site) + " has no axis " + in_quotes(name) + "; allowed: " + axis_names(site));
}

std::string GridVerdict::summary() const {
  auto counted = [](std::int64_t n, const std::string& what) {
    return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
  };
  std::string done =
      std::to_string(cells) + (cells == 1 ? " patch in " : " patches in ") + counted(runs, "run");
  if (equal_cells > 0)
    done += " (" + std::to_string(equal_cells) + " not run: they change nothing that is read)";
  std::string status_name(name_of(status));
  if (status == Status::unverified)
    return status_name + ": " + done + ", none of them compared with the reference (verify off)";
  std::string compared = std::to_string(n_compared) + " elements compared";
  if (n_projected > 0)
    compared += ", " + std::to_string(n_projected) + " more only by checksums of their rows";
  if (status == Status::invalid)
    return status_name + ": " + std::to_string(refused_cells.size()) + " of " + done +
           " refused (" + counted(refused_runs, "run") + "); the first: " + first_failure;
  return status_name + ": " + done + ", " + compared + ", the largest " + short_ratio(worst_ratio) +
         " of its bound, at " + worst_name;
}

nlohmann::json to_json(const GridVerdict& v) {
  return {{"status", name_of(v.status)},
          {"mode", name_of(v.mode)},
          {"cells", v.cells},
          {"runs", v.runs},
          {"refused_runs", v.refused_runs},
          {"refused_cells", v.refused_cells},
          {"equal_cells", v.equal_cells},
          {"n_compared", v.n_compared},
          {"n_projected", v.n_projected},
          {"worst_ratio", v.worst_ratio},
          {"worst_name", v.worst_name},
          {"seconds", v.seconds},
          {"first_failure", v.first_failure},
          {"summary", v.summary()}};
}

Array GridResult::normalized() const {
  double range = clean() - corrupted();
  // Rounding of the two ends, and of the values themselves at the metric's own size.
  double least = 8 * error_bar() + 1e-9 * std::max(std::abs(clean()), std::abs(corrupted()));
  if (!(std::abs(range) > least))
    refuse("clean and corrupted are the same to this metric (" + short_number(clean()) + " and " +
           short_number(corrupted()) + "): their difference " + short_number(range) +
           " is within rounding (" + short_number(least) +
           "), so that nothing can be put between them; use values");
  std::vector<double> scaled = values().to_doubles();
  for (double& x : scaled) x = (x - corrupted()) / range;
  return Array::of(std::span<const double>(scaled), values().shape());
}

GridFailed::GridFailed(const VerificationFailed& first, GridResult partial)
    : VerificationFailed(first),
      partial_(std::move(partial)),
      message_(std::make_shared<const std::string>(partial_.verdict().summary())) {}

/// One sweep over a pair of verified runs.
class Sweep {
 public:
  Sweep(const HookedTransformer& model, const VerifiedCache& clean, const VerifiedCache& corrupted,
        const GridOptions& options, const Metric& metric)
      : model_(model), clean_(clean), corrupted_(corrupted), o_(options), metric_(metric) {
    verify_ = o_.verify.value_or(model.options().verify == VerifyMode::off ? VerifyMode::off
                                                                           : VerifyMode::checksum);
    check_site(o_.site, model.config());
    axes_ = checked_axes(o_.site, o_.over);
    check_pair();
    if (o_.positions) positions_ = checked_positions(*o_.positions, base().record().pos);
    for (Axis axis : axes_) shape_.push_back(extent(axis));
    for (const std::string& name : grid_hooks(o_.site, model.config()))
      sources_.push_back(source_at(name));
  }

  GridResult run();

 private:
  void check_pair() const;
  Array source_at(const std::string& name) const;
  std::int64_t extent(Axis axis) const;
  std::int64_t most_in_a_run(std::size_t bytes_of_patch) const;
  Patch patch_of(std::int64_t cell) const;
  VerifiedCache base_with_everything() const;
  void run_all(const PatchRuns& runs, std::vector<Patch> patches);
  void carry_on(const PatchRuns& runs, std::vector<Patch>& part);
  void run_rows(const PatchRuns& runs, std::span<Patch> of_layer);
  void run_group(const PatchRuns& runs, std::span<const Patch> group);
  std::optional<Array> output_of(const Request& request, std::span<const Patch> group);
  void set_value(const Patch& patch, const std::vector<double>& values);
  void count(const Verdict& verdict);
  void sample(const std::vector<Patch>& patches, double base_value);
  std::string name_of_cell(std::int64_t cell) const;
  void check_metric(const VerifiedCache& run, const std::string& which) const;
  std::vector<double> of_run(const VerifiedCache& run, const std::string& which) const;
  double value_of(std::int64_t cell) const;
  std::vector<GridAxis> labelled_axes() const;
  Array mean_over_prompts() const;
  std::shared_future<double> error_bar(double clean, double corrupted) const;
  RunOptions run_options() const;

  const VerifiedCache& base() const { return denoises() ? corrupted_ : clean_; }
  const VerifiedCache& source() const { return denoises() ? clean_ : corrupted_; }
  bool denoises() const { return o_.direction == Direction::denoise; }
  Tokens base_tokens() const { return tokens_of(base().record()); }

  const HookedTransformer& model_;
  const VerifiedCache &clean_, &corrupted_;
  const GridOptions& o_;
  const Metric& metric_;
  VerifyMode verify_;
  std::vector<Axis> axes_;
  Shape shape_;
  std::optional<std::vector<std::int64_t>> positions_ = {};  // of an axis of positions; unset: all
  std::vector<Array> sources_;                               // one a layer
  std::int64_t prompts_ = 0;                                 // values that the metric returns a run
  std::vector<double> values_;                               // [cells, prompts]
  std::vector<std::pair<Array, std::string>> carried_ = {};  // with digests, while runs read them
  double sampled_error_ = 0;  // what running whole moved the sampled cells by
  std::vector<std::pair<Plan, double>> sampled_ = {};  // their edits of the base run, their values
  GridVerdict verdict_;
  std::optional<VerificationFailed> first_;
};

void Sweep::check_pair() const {
  check_run(model_, clean_.record(), "clean");
  check_run(model_, corrupted_.record(), "corrupted");
  const RunRecord &a = clean_.record(), &b = corrupted_.record();
  if (a.batch != b.batch || a.pos != b.pos)
    refuse("the clean run is " + std::to_string(a.batch) + " prompts of " + std::to_string(a.pos) +
           " tokens, the corrupted one " + std::to_string(b.batch) + " of " +
           std::to_string(b.pos) + "; needed: equal numbers");
  if (a.spans != b.spans)
    refuse(
        "the clean prompts and the corrupted ones are padded otherwise: their tokens do not stand "
        "at the same positions");
}

Array Sweep::source_at(const std::string& name) const {
  std::string which = denoises() ? "clean" : "corrupted";
  if (source().activations().find(name) == nullptr)
    refuse("the " + which + " run does not hold " + name + " (it holds " +
           std::to_string(source().activations().entries().size()) +
           " activations); run it with a filter that keeps " + short_name(o_.site) +
           " in every layer");
  const Array& value = source()[name];
  Shape whole = shape_of(o_.site, model_.config(),
                         {base().record().batch, base().record().pos, base().record().pos});
  if (value.shape() != whole)
    refuse("the " + which + " run holds " + name + " as " + to_string(value.shape()) +
           "; needed: every position, " + to_string(whole));
  return value;
}

std::int64_t Sweep::extent(Axis axis) const {
  if (axis == Axis::layer) return model_.config().n_layers;
  if (positions_ && is_choosable(axis)) return std::ssize(*positions_);
  auto all = info(o_.site).axes;
  auto at = static_cast<std::size_t>(std::ranges::find(all, axis) - all.begin());
  return shape_of(o_.site, model_.config(),
                  {base().record().batch, base().record().pos, base().record().pos})[at];
}

std::int64_t Sweep::most_in_a_run(std::size_t bytes_of_patch) const {
  if (o_.max_cells && *o_.max_cells < 1)
    throw std::out_of_range("[patch_grid] max_cells " + std::to_string(*o_.max_cells) +
                            " out of range; allowed: 1 and more");
  std::int64_t fit =
      std::max<std::int64_t>(1, static_cast<std::int64_t>(o_.max_bytes / bytes_of_patch));
  return std::min(fit, o_.max_cells.value_or(fit));
}

Patch Sweep::patch_of(std::int64_t cell) const {
  Patch patch{.cell = cell, .layer = 0, .where = {}};
  for (std::size_t d = axes_.size(); d-- > 0;) {
    std::int64_t index = cell % shape_[d];
    cell /= shape_[d];
    if (axes_[d] == Axis::layer) patch.layer = index;
    if (axes_[d] == Axis::head || axes_[d] == Axis::kv_head) patch.where.head = index;
    if (axes_[d] == Axis::key) patch.where.key = index;
    if (is_choosable(axes_[d]))
      patch.where.pos = {positions_ ? (*positions_)[static_cast<std::size_t>(index)] : index};
  }
  return patch;
}

RunOptions Sweep::run_options() const {
  return {.verify = verify_,
          .names = std::vector<std::string>{},
          .interference = o_.interference,
          .device_faults = o_.device_faults};
}

// The base run with what patched runs start from and are compared with; run again, and verified,
// when it holds less.
VerifiedCache Sweep::base_with_everything() const {
  auto names = PatchRuns::needed(o_.site, model_.config());
  if (holds_all(base(), names)) return base();
  RunOptions run = run_options();
  if (verify_ == VerifyMode::off) run.verify = VerifyMode::checksum;
  run.names = std::move(names);
  return model_.run_with_cache(base_tokens(), run);
}

void Sweep::count(const Verdict& verdict) {
  verdict_.n_compared += verdict.n_compared();
  verdict_.n_projected += verdict.n_projected();
  verdict_.seconds += verdict.seconds;
  for (const Point& point : verdict.points)
    if (verdict_.worst_name.empty() || point.worst_ratio > verdict_.worst_ratio) {
      verdict_.worst_ratio = point.worst_ratio;
      verdict_.worst_name = to_string(point.id);
    }
}

// Nothing when the run was refused.
std::optional<Array> Sweep::output_of(const Request& request, std::span<const Patch> group) {
  verdict_.runs += 1;
  if (verify_ == VerifyMode::off) return model_.run_request_unverified(request, run_options());
  try {
    VerifiedCache run = model_.run_request(request, run_options());
    count(run.verdict());
    return run.output();
  } catch (const VerificationFailed& e) {
    verdict_.refused_runs += 1;
    for (const Patch& patch : group) verdict_.refused_cells.push_back(patch.cell);
    verdict_.seconds += e.verdict().seconds;
    if (!first_) first_ = e;
    return {};
  }
}

void Sweep::set_value(const Patch& patch, const std::vector<double>& values) {
  if (std::ssize(values) != prompts_)
    refuse("the metric returned " + std::to_string(values.size()) + " numbers " +
           name_of_cell(patch.cell) + " and " + std::to_string(prompts_) +
           " for the clean run; needed: as many");
  for (double value : values)
    if (!std::isfinite(value))
      refuse("the metric is " + short_number(value) + " " + name_of_cell(patch.cell) +
             "; needed: a finite number");
  std::ranges::copy(values, values_.begin() + patch.cell * prompts_);
}

void Sweep::run_group(const PatchRuns& runs, std::span<const Patch> group) {
  Request request = runs.request(group);
  // What one run of a device cannot take may go in two.
  if (group.size() > 1 && !model_.fits(request)) {
    run_group(runs, group.first(group.size() / 2));
    run_group(runs, group.subspan(group.size() / 2));
    return;
  }
  auto output = output_of(request, group);
  if (!output) return;
  std::int64_t batch = base().record().batch;
  for (std::size_t i = 0; i < group.size(); ++i) {
    auto row = static_cast<std::int64_t>(i) * batch;
    set_value(group[i], runs.reads_one_position()
                            ? metric_.values_of_read(output->rows(row, row + batch))
                            : metric_.values(at_positions(runs.whole_logits(*output, group, i))));
  }
}

// Runs the rows of those patches that run in two parts, and drops those that were refused.
void Sweep::carry_on(const PatchRuns& runs, std::vector<Patch>& part) {
  auto in_two_parts = [&](const Patch& patch) { return runs.in_two_parts(patch); };
  auto others = std::ranges::stable_partition(part, in_two_parts);
  std::span<Patch> behind(part.begin(), others.begin());
  std::ranges::stable_sort(behind, {}, &Patch::layer);
  while (!behind.empty()) {
    auto next = std::ranges::upper_bound(behind, behind[0].layer, {}, &Patch::layer);
    std::span<Patch> of_layer(behind.begin(), next);
    auto bytes = [&](const Patch& patch) { return runs.bytes_of_rows(patch); };
    std::int64_t most = most_in_a_run(bytes(*std::ranges::max_element(of_layer, {}, bytes)));
    of_layer = of_layer.first(std::min(of_layer.size(), static_cast<std::size_t>(most)));
    run_rows(runs, of_layer);
    behind = behind.subspan(of_layer.size());
  }
  std::erase_if(part, [&](const Patch& p) { return in_two_parts(p) && p.carried.empty(); });
}

// Carries patches of one layer to its end, unless their run is refused.
void Sweep::run_rows(const PatchRuns& runs, std::span<Patch> of_layer) {
  Request request = runs.request_of_rows(of_layer);
  std::size_t half = of_layer.size() / 2;
  if (half > 0 && !model_.fits(request)) {
    run_rows(runs, of_layer.first(half));
    run_rows(runs, of_layer.subspan(half));
    return;
  }
  auto output = output_of(request, of_layer);
  if (!output) return;
  runs.carry(of_layer, *output);
  carried_.emplace_back(*output, output->digest());
}

// A part of the patches at a time, so that what they are carried on with stays small beside a run.
void Sweep::run_all(const PatchRuns& runs, std::vector<Patch> patches) {
  constexpr std::size_t kShare = 8;
  auto most = [&](std::int64_t first_pos) { return most_in_a_run(runs.bytes_of_patch(first_pos)); };
  most(0);  // refuses nonsense before anything runs
  std::int64_t done = verdict_.equal_cells;
  std::ranges::stable_sort(patches, {}, &Patch::first_pos);
  for (std::span<Patch> rest = patches; !rest.empty();) {
    std::size_t fit = std::max<std::size_t>(1, o_.max_bytes / kShare / runs.bytes_carried(rest[0]));
    std::vector<Patch> part(rest.begin(), rest.begin() + std::min(fit, rest.size()));
    rest = rest.subspan(part.size());
    std::int64_t behind = done + std::ssize(part);
    carry_on(runs, part);
    done = behind - std::ssize(part);  // without those that were refused
    for (const auto& group : runs.grouped(part, most)) {
      if (o_.progress) o_.progress(done, verdict_.cells);
      run_group(runs, group);
      done += std::ssize(group);
    }
    for (const auto& [values, digest] : carried_)
      if (values.digest() != digest)
        throw NotVerified("[patch_grid] what patches were carried on with was overwritten");
    carried_.clear();
  }
  if (o_.progress) o_.progress(verdict_.cells, verdict_.cells);
}

// Two cells once more, as whole runs from the tokens: the one that moves the metric furthest and
// the middle one. What was saved must not show in them.
void Sweep::sample(const std::vector<Patch>& patches, double base_value) {
  std::vector<Patch> chosen;
  auto effect = [&](const Patch& patch) {
    double value = value_of(patch.cell);
    return std::isnan(value) ? -1 : std::abs(value - base_value);
  };
  auto refused = [&](const Patch& patch) { return effect(patch) < 0; };
  if (auto most = std::ranges::max_element(patches, {}, effect);
      most != patches.end() && !refused(*most))
    chosen.push_back(*most);
  if (patches.size() > 1 && !refused(patches[patches.size() / 2]))
    chosen.push_back(patches[patches.size() / 2]);
  if (chosen.empty()) return;
  std::int64_t batch = base().record().batch;
  Tokens tokens{.batch = std::ssize(chosen) * batch, .pos = base().record().pos};
  std::vector<Edit> edits;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    std::vector<Edit> of_cell;
    for (std::int64_t b = 0; b < batch; ++b) {
      Edit edit{.kind = EditKind::patch,
                .site = o_.site,
                .layer = chosen[i].layer,
                .where = chosen[i].where,
                .source = sources_[static_cast<std::size_t>(chosen[i].layer)].rows(b, b + 1)};
      edit.where.batch = b;
      of_cell.push_back(edit);
      edit.where.batch = static_cast<std::int64_t>(i) * batch + b;
      edits.push_back(std::move(edit));
    }
    auto once_more = [](auto& to, const auto& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    once_more(tokens.ids, base().record().tokens);
    once_more(tokens.spans, base().record().spans);
    once_more(tokens.types, base().record().token_types);
    sampled_.emplace_back(Plan(std::move(of_cell)), value_of(chosen[i].cell));
  }
  RunOptions run = run_options();
  run.plan = Plan(std::move(edits));
  Request request = model_.request_for(tokens, run);
  // Logits of these alone, but at all positions; of all where logits are what is patched.
  bool whole = o_.site == Site::unembed_out || !unembeds(model_.config().head);
  const Reads reads = whole ? Reads{} : metric_.reads();
  request.rows.read_tokens = reads.tokens;
  auto measured = [&](const Array& logits) {
    if (reads.tokens.empty()) return metric_.mean(at_positions(logits));
    return mean_of_values(metric_.values_of_read(at_position(logits, *reads.pos)));
  };
  auto output = output_of(request, chosen);
  if (!output) sampled_.clear();
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    auto row = static_cast<std::int64_t>(i) * batch;
    if (output)
      sampled_error_ = std::max(sampled_error_, std::abs(value_of(chosen[i].cell) -
                                                         measured(output->rows(row, row + batch))));
    else
      std::fill_n(values_.begin() + chosen[i].cell * prompts_, prompts_,
                  std::numeric_limits<double>::quiet_NaN());
  }
}

std::string Sweep::name_of_cell(std::int64_t cell) const {
  std::string text;
  for (std::size_t d = axes_.size(); d-- > 0; cell /= shape_[d])
    text = std::string(name_of(axes_[d])) + " " + std::to_string(cell % shape_[d]) +
           (text.empty() ? "" : ", ") + text;
  return "at " + text;
}

// A declared metric reads logits, and no padding.
void Sweep::check_metric(const VerifiedCache& run, const std::string& which) const {
  const Config& c = model_.config();
  const std::string name = metric_.description().at("metric");
  if (name == "function") return;
  bool labels = c.head == Head::classifier;
  if (!unembeds(c.head) && !labels)
    refuse("the metric " + name +
           " reads logits, and this model has none: give a function of what "
           "the last block returns");
  if (name == "loss" && (!c.causal || !run.record().spans.empty()))
    refuse("the loss is of the next token, of causal models and prompts without padding");
  if (labels || !metric_.reads().pos) return;
  if (c.head == Head::masked_lm && *metric_.reads().pos == -1)
    refuse(
        "the metric reads the last position, where an encoder's prompt ends in a special token; "
        "give the position of the masked one (pos)");
  std::int64_t pos = *metric_.reads().pos + (*metric_.reads().pos < 0 ? run.record().pos : 0);
  for (std::size_t b = 0; b < run.record().spans.size(); ++b)
    if (const Span& span = run.record().spans[b]; pos < span.begin || pos >= span.end)
      refuse("the metric reads position " + std::to_string(pos) + ", which is padding in prompt " +
             std::to_string(b) + " of the " + which +
             " run; pad on the left (padding_side) to read the last token of each");
}

std::vector<double> Sweep::of_run(const VerifiedCache& run, const std::string& which) const {
  check_metric(run, which);
  std::vector<double> values = metric_.values(at_positions(run.output()));
  for (double value : values)
    if (!std::isfinite(value))
      refuse("the metric is " + short_number(value) + " for the " + which +
             " run; needed: a finite number");
  return values;
}

double Sweep::value_of(std::int64_t cell) const {
  auto first = values_.begin() + cell * prompts_;
  return mean_of_values({first, first + prompts_});
}

Array Sweep::mean_over_prompts() const {
  std::vector<double> means;
  for (std::int64_t cell = 0; cell < numel(shape_); ++cell) means.push_back(value_of(cell));
  return Array::of(std::span<const double>(means), shape_);
}

std::vector<GridAxis> Sweep::labelled_axes() const {
  std::vector<GridAxis> axes;
  for (std::size_t d = 0; d < axes_.size(); ++d) {
    axes.push_back({.axis = axes_[d], .labels = {}});
    for (std::int64_t i = 0; i < shape_[d]; ++i) {
      std::int64_t pos =
          positions_ && is_choosable(axes_[d]) ? (*positions_)[static_cast<std::size_t>(i)] : i;
      axes.back().labels.push_back(
          is_position(axes_[d]) ? position_label(model_, clean_.record(), corrupted_.record(), pos)
                                : std::to_string(i));
    }
  }
  return axes;
}

// Whole runs in float64 take longer than a small sweep: when somebody asks.
std::shared_future<double> Sweep::error_bar(double clean, double corrupted) const {
  auto weights = model_.shared_weights();
  // Of a whole run: without edits, or with those of one sampled cell.
  auto drift = [weights, metric = metric_](const RunRecord& r, const Plan& plan, double value) {
    Request request{.rows = rows_of(tokens_of(r), weights->config), .plan = plan};
    double exact = metric.mean(at_positions(run_in_float64(*weights, request, torch_parallel_for)));
    if (!std::isfinite(exact))
      refuse("the metric is " + short_number(exact) +
             " for a run in float64; needed: a finite number");
    return std::abs(value - exact);
  };
  return std::async(
      std::launch::deferred, [=, a = clean_.record(), b = corrupted_.record(),
                              base = base().record(), sampled = sampled_, error = sampled_error_] {
        double worst = std::max({drift(a, {}, clean), drift(b, {}, corrupted), error});
        for (const auto& [plan, value] : sampled) worst = std::max(worst, drift(base, plan, value));
        return worst;
      });
}

GridResult Sweep::run() {
  const std::vector<double> clean_values = of_run(clean_, "clean"),
                            corrupted_values = of_run(corrupted_, "corrupted"),
                            &base_values = denoises() ? corrupted_values : clean_values;
  double clean = mean_of_values(clean_values), corrupted = mean_of_values(corrupted_values);
  prompts_ = std::ssize(clean_values);
  values_.assign(static_cast<std::size_t>(numel(shape_) * prompts_),
                 std::numeric_limits<double>::quiet_NaN());
  verdict_.mode = verify_;
  verdict_.cells = numel(shape_);
  VerifiedCache whole_base = base_with_everything();
  if (verify_ != VerifyMode::off) count(whole_base.verdict());  // every cell rests on it
  PatchRuns runs(model_, o_.site, whole_base, sources_, metric_.reads(), o_.savings);
  std::vector<Patch> patches;
  for (std::int64_t cell = 0; cell < verdict_.cells; ++cell) {
    Patch patch = patch_of(cell);
    if (runs.changes_anything(patch)) {
      patches.push_back(std::move(patch));
    } else {
      set_value(patch, base_values);
      verdict_.equal_cells += 1;
    }
  }
  run_all(runs, patches);
  sample(patches, denoises() ? corrupted : clean);
  // Both passes read these from this memory: it must be as it was verified to the end.
  for (const std::string& name : grid_hooks(o_.site, model_.config())) source()[name];
  for (const std::string& name : PatchRuns::needed(o_.site, model_.config())) whole_base[name];
  std::ranges::sort(verdict_.refused_cells);
  if (first_) verdict_.first_failure = first_->what();
  if (verify_ != VerifyMode::off)
    verdict_.status = first_ || verdict_.n_compared == 0 ? Status::invalid : Status::verified;
  Shape of_prompts = shape_;
  of_prompts.push_back(prompts_);
  GridResult grid({.site = o_.site,
                   .direction = o_.direction,
                   .axes = labelled_axes(),
                   .values = mean_over_prompts(),
                   .values_of_prompts = Array::of(std::span<const double>(values_), of_prompts),
                   .clean = clean,
                   .corrupted = corrupted,
                   .clean_of_prompts = clean_values,
                   .corrupted_of_prompts = corrupted_values,
                   .error_bar = error_bar(clean, corrupted),
                   .metric = metric_.description(),
                   .verdict = verdict_,
                   .clean_record = clean_.record(),
                   .corrupted_record = corrupted_.record()});
  if (first_) throw GridFailed(*first_, std::move(grid));
  return grid;
}

GridResult patch_grid(const HookedTransformer& model, const VerifiedCache& clean,
                      const VerifiedCache& corrupted, const GridOptions& options,
                      const Metric& metric) {
  return Sweep(model, clean, corrupted, options, metric).run();
}

GridResult patch_grid(const HookedTransformer& model, const VerifiedCache& clean,
                      const Tokens& corrupted, const GridOptions& options, const Metric& metric) {
  bool exact = options.verify == VerifyMode::exact;
  RunOptions run{.verify = exact ? VerifyMode::exact : VerifyMode::checksum,
                 .names = std::vector<std::string>{},
                 .interference = options.interference,
                 .device_faults = options.device_faults};
  check_site(options.site, model.config());
  run.names = options.direction == Direction::noise
                  ? grid_hooks(options.site, model.config())
                  : PatchRuns::needed(options.site, model.config());
  return patch_grid(model, clean, model.run_with_cache(corrupted, run), options, metric);
}

}  // namespace lenscpp
