// Blocks: planned, named and run.
#include "patching/batch.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>
#include <stdexcept>

#include "hooks/nearest.h"
#include "lens/torch_parallel.h"
#include "verify/reference/end_to_end.h"
#include "verify/store/sha256.h"

namespace lenscpp {

using nlohmann::json;

namespace {

constexpr const char* kFormat = "lenscpp batch 1";

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[batch] " + what);
}

// An axis that goes over the positions of an experiment.
bool is_chosen(Axis axis) { return axis == Axis::pos || axis == Axis::query; }

// What experiments that run together have in common.
std::string kind_of(const Tokenized& e) {
  json kind = to_json(e);
  kind["length"] = e.clean.size();
  for (const char* own : {"id", "template", "clean", "corrupted", "answer", "wrong"})
    kind.erase(own);
  auto by_position = [](const GridSite& grid) {
    return std::ranges::any_of(grid.over, &is_chosen);
  };
  if (std::ranges::none_of(e.sites, by_position)) kind.erase("positions");
  return kind.dump();
}

Metric metric_of(const std::vector<Tokenized>& experiments) {
  const std::string& name = experiments[0].metric;
  std::vector<std::vector<std::int64_t>> answers, wrongs;
  std::vector<std::int64_t> answer, wrong;
  for (const Tokenized& e : experiments) {
    answers.push_back(e.answer);
    wrongs.push_back(e.wrong);
    answer.push_back(e.answer[0]);
    wrong.push_back(e.wrong[0]);
  }
  if (name == "logit_diff") return LogitDiff{answer, wrong};
  if (name == "prob_diff") return ProbDiff{answers, wrongs};
  if (name == "prob") return Prob{answer};
  return LogProb{answer};
}

// Above 0 where the answer is preferred to the wrong one.
Metric preference_of(const std::vector<Tokenized>& experiments) {
  std::vector<Tokenized> compared = experiments;
  if (compared[0].metric != "prob_diff")
    for (Tokenized& e : compared) e.metric = "logit_diff";
  return metric_of(compared);
}

std::string short_number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "";
}

// [prompts, cells...] of [cells..., prompts].
Array prompts_first(const Array& values) {
  std::int64_t n = values.size(-1), cells = values.numel() / std::max<std::int64_t>(n, 1);
  Shape shape = values.shape();
  shape.pop_back();
  shape.insert(shape.begin(), n);
  MutableArray result(shape, DType::f64);
  auto from = values.as<double>();
  for (std::int64_t c = 0; c < cells; ++c)
    for (std::int64_t i = 0; i < n; ++i)
      result.data<double>()[i * cells + c] = from[static_cast<std::size_t>(c * n + i)];
  return std::move(result).freeze();
}

}  // namespace

Batch::Batch(const HookedTransformer& model, const std::vector<Experiment>& experiments,
             BatchOptions options)
    : model_(model),
      options_(std::move(options)),
      verify_(options_.verify.value_or(
          model.options().verify == VerifyMode::off ? VerifyMode::off : VerifyMode::checksum)),
      n_experiments_(std::ssize(experiments)) {
  if (experiments.empty()) refuse("there are no experiments");
  if (options_.block < 1)
    refuse("block " + std::to_string(options_.block) + "; allowed: 1 experiment and more");
  if (!(options_.least_difference >= 0) || !std::isfinite(options_.least_difference))
    refuse("least_difference " + std::to_string(options_.least_difference) +
           "; allowed: 0 and more");
  json sites = json::array();
  for (const PatchedSite& site : options_.tokenize.sites)
    sites.push_back({{"site", site.site}, {"over", site.over}});
  const auto& bos = options_.tokenize.prepend_bos;
  identity_ = {{"format", kFormat},
               {"sites", std::move(sites)},
               {"prepend_bos", bos ? json(*bos) : json()},
               {"model_digest", model.digest()},
               {"matmul_precision", lenscpp::name_of(model.options().matmul_precision)},
               {"direction", lenscpp::name_of(options_.direction)},
               {"verify", lenscpp::name_of(verify_)},
               {"block", options_.block},
               {"least_difference", options_.least_difference},
               {"keep_wrong", options_.keep_wrong}};
  std::set<std::string> ids;
  std::map<std::string, std::size_t> open;  // kinds with a block that has room
  for (const Experiment& experiment : experiments) {
    if (!ids.insert(experiment.id).second)
      refuse("the id " + in_quotes(experiment.id) + " is there twice; needed: each once");
    auto tokenized = tokenize(model, experiment, options_.tokenize);
    if (auto* rejection = std::get_if<Rejection>(&tokenized)) {
      rejected_.push_back(std::move(*rejection));
      continue;
    }
    Tokenized& one = std::get<Tokenized>(tokenized);
    one.index = &experiment - experiments.data();
    auto [block, added] = open.emplace(kind_of(one), blocks_.size());
    if (!added && std::ssize(blocks_[block->second].experiments) >= options_.block) {
      block->second = blocks_.size();
      added = true;
    }
    if (added) blocks_.emplace_back();
    blocks_[block->second].experiments.push_back(std::move(one));
  }
  for (Block& block : blocks_) block.name = name_of(block.experiments);
}

std::string Batch::name_of(const std::vector<Tokenized>& experiments) const {
  json what = identity_;
  for (const Tokenized& e : experiments) what["experiments"].push_back(to_json(e));
  return sha256(what.dump(-1, ' ', false, json::error_handler_t::replace));
}

std::int64_t Batch::cells_of(const Block& block) const {
  const Tokenized& e = block.experiments[0];
  std::int64_t pos = std::ssize(e.clean), cells = 0;
  for (const GridSite& grid : e.sites) {
    std::int64_t here = 1;
    Shape shape = shape_of(grid.site, model_.config(), {1, pos, pos});
    for (Axis axis : grid.over) {
      auto axes = info(grid.site).axes;
      auto at = static_cast<std::size_t>(std::ranges::find(axes, axis) - axes.begin());
      bool chosen = e.positions && is_chosen(axis);
      here *= axis == Axis::layer ? model_.config().n_layers
              : chosen            ? std::ssize(*e.positions)
                                  : shape[at];
    }
    cells += here;
  }
  return cells * std::ssize(block.experiments);
}

/// One block on its way to a shard.
class BlockRun {
 public:
  BlockRun(const Batch& batch, const Block& block) : b_(batch), left_(block.experiments) {
    shard_.name = block.name;
    v_.mode = b_.verify_;
  }

  Shard run() {
    auto start = std::chrono::steady_clock::now();
    try {
      auto runs = base_runs();
      if (runs) sweep_all(runs->first, runs->second);
      shard_.status = b_.verify_ == VerifyMode::off ? Status::unverified : Status::verified;
      if (b_.verifies() && v_.n_compared == 0) refuse_it("nothing was compared");
      if (!b_.options_.injected.empty())
        refuse_it("faults were injected, and passed the checks: " + in_words(b_.options_.injected));
    } catch (const NotVerified& e) {
      refuse_it(e.what());
    } catch (const VerificationFailed& e) {
      refuse_it(e.what());
      if (v_.refused_runs == 0) v_.refused_runs = 1;
      // Where a run of the prompts was refused there is no metric.
      for (auto* column : {&shard_.clean, &shard_.corrupted})
        if (column->size() != left_.size())
          column->assign(left_.size(), std::numeric_limits<double>::quiet_NaN());
    }
    v_.status = shard_.status;
    shard_.experiments = left_;
    shard_.verdict = to_json(v_);
    shard_.verdict.erase("refused_cells");
    shard_.verdict.erase("summary");
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    shard_.provenance["seconds"] = seconds.count();
    shard_.provenance["host"] = host_name();
    return std::move(shard_);
  }

 private:
  using Pair = std::pair<VerifiedCache, VerifiedCache>;

  void refuse_it(const std::string& why) {
    shard_.status = Status::invalid;
    v_.first_failure = why;
  }

  static std::string in_words(const std::vector<std::string>& faults) {
    std::string text;
    for (const std::string& fault : faults) text += (text.empty() ? "" : ", ") + fault;
    return text;
  }

  Tokens tokens(std::vector<std::int64_t> Tokenized::*which) const {
    Tokens all{.batch = std::ssize(left_), .pos = std::ssize(left_[0].clean)};
    for (const Tokenized& e : left_)
      all.ids.insert(all.ids.end(), (e.*which).begin(), (e.*which).end());
    return all;
  }

  VerifiedCache run_of(std::vector<std::int64_t> Tokenized::*which, bool base) {
    std::vector<std::string> names;
    for (const GridSite& grid : left_[0].sites)
      for (const std::string& name : base ? PatchRuns::needed(grid.site, b_.model_.config())
                                          : grid_hooks(grid.site, b_.model_.config()))
        if (std::ranges::find(names, name) == names.end()) names.push_back(name);
    VerifyMode mode = b_.verify_ == VerifyMode::off ? VerifyMode::checksum : b_.verify_;
    VerifiedCache run =
        b_.model_.run_with_cache(tokens(which), {.verify = mode,
                                                 .names = std::move(names),
                                                 .interference = b_.options_.interference,
                                                 .device_faults = b_.options_.device_faults});
    note(run.record());
    of_prompts_ += run.verdict().n_compared();
    return run;
  }

  void note(const RunRecord& r) {
    shard_.provenance = {{"model", r.model},
                         {"model_digest", r.model_digest},
                         {"processing", r.processing},
                         {"device", r.device},
                         {"device_name", r.device_name},
                         {"dtype", r.dtype},
                         {"libraries", r.libraries},
                         {"build_commit", r.build_commit},
                         {"build_dirty", r.build_dirty},
                         {"threads", r.threads},
                         {"fallbacks", r.fallbacks},
                         {"injected", b_.options_.injected},
                         {"time", r.time}};
  }

  // The runs of the prompts whose pairs can be used; nothing where there is none.
  std::optional<Pair> base_runs() {
    bool denoises = b_.options_.direction == Direction::denoise;
    while (!left_.empty()) {
      Pair runs{run_of(&Tokenized::clean, !denoises), run_of(&Tokenized::corrupted, denoises)};
      Metric metric = metric_of(left_);
      shard_.clean = metric.values(runs.first.output());
      shard_.corrupted = metric.values(runs.second.output());
      preference_ = preference_of(left_).values(runs.first.output());
      if (!reject_some()) return runs;
    }
    shard_.clean.clear();
    shard_.corrupted.clear();
    v_.n_compared = of_prompts_;  // grids count the runs that they start from themselves
    return {};
  }

  bool reject_some() {
    std::vector<Tokenized> kept;
    for (std::size_t i = 0; i < left_.size(); ++i) {
      double clean = shard_.clean[i], corrupted = shard_.corrupted[i];
      std::string both = "clean " + short_number(clean) + ", corrupted " + short_number(corrupted);
      if (!b_.options_.keep_wrong && !(preference_[i] > 0))
        shard_.rejected.push_back({left_[i].id, Reason::clean_wrong, both});
      else if (!(std::abs(clean - corrupted) >= b_.options_.least_difference) || clean == corrupted)
        shard_.rejected.push_back({left_[i].id, Reason::too_close, both});
      else
        kept.push_back(left_[i]);
    }
    bool some = kept.size() < left_.size();
    left_ = std::move(kept);
    return some;
  }

  void sweep_all(const VerifiedCache& clean, const VerifiedCache& corrupted) {
    const Metric metric = metric_of(left_);
    const std::int64_t all_cells = b_.cells_of({shard_.name, left_});
    shard_.error_bar = error_of_first();
    std::int64_t done = 0;
    std::optional<GridFailed> first;
    for (const GridSite& site : left_[0].sites) {
      GridOptions options{.site = site.site,
                          .over = site.over,
                          .direction = b_.options_.direction,
                          .verify = b_.verify_,
                          .interference = b_.options_.interference,
                          .device_faults = b_.options_.device_faults};
      if (left_[0].positions) {
        options.positions.emplace();
        for (const NamedPosition& p : *left_[0].positions) options.positions->push_back(p.pos);
      }
      std::int64_t cells = 0;
      options.progress = [&](std::int64_t of_grid, std::int64_t all) {
        cells = all * std::ssize(left_);
        if (b_.options_.progress)
          b_.options_.progress(done + of_grid * std::ssize(left_), all_cells);
      };
      try {
        keep(site, patch_grid(b_.model_, clean, corrupted, options, metric));
      } catch (const GridFailed& e) {
        keep(site, e.partial());
        if (!first) first = e;
      }
      done += cells;
    }
    if (first) throw *first;
  }

  double error_of_first() const {
    const Tokenized& e = left_[0];
    std::vector<std::int64_t> ids = e.clean;
    ids.insert(ids.end(), e.corrupted.begin(), e.corrupted.end());
    const Weights& weights = b_.model_.weights();
    Request request{.rows = Rows::from_tokens(ids, 2, weights.config)};
    std::vector<double> exact =
        metric_of({e, e}).values(run_in_float64(weights, request, torch_parallel_for));
    return std::max(std::abs(exact[0] - shard_.clean[0]), std::abs(exact[1] - shard_.corrupted[0]));
  }

  void keep(const GridSite& site, const GridResult& grid) {
    std::vector<GridAxis> axes = grid.axes();
    for (GridAxis& axis : axes) {
      bool chosen = is_chosen(axis.axis);
      for (std::size_t i = 0; i < axis.labels.size(); ++i)
        axis.labels[i] =
            chosen && left_[0].positions ? (*left_[0].positions)[i].name : std::to_string(i);
    }
    const std::string& name = left_[0].metric;
    std::string key = site.key() + (name == "logit_diff" ? "" : "_of_" + name);
    shard_.grids.push_back({key, std::move(axes), prompts_first(grid.values_of_prompts())});
    const GridVerdict& g = grid.verdict();
    v_.cells += g.cells * std::ssize(left_);
    v_.runs += g.runs;
    v_.refused_runs += g.refused_runs;
    v_.equal_cells += g.equal_cells * std::ssize(left_);
    v_.n_compared += g.n_compared;
    v_.n_projected += g.n_projected;
    v_.seconds += g.seconds;
    if (v_.worst_name.empty() || g.worst_ratio > v_.worst_ratio) {
      v_.worst_ratio = g.worst_ratio;
      v_.worst_name = g.worst_name;
    }
  }

  const Batch& b_;
  std::vector<Tokenized> left_;     // experiments that were not rejected
  std::vector<double> preference_;  // of the clean runs, above 0 for the answer
  Shard shard_;
  GridVerdict v_;                // over all grids
  std::int64_t of_prompts_ = 0;  // elements compared in the runs of the prompts
};

Shard Batch::run(const Block& block) const { return BlockRun(*this, block).run(); }

}  // namespace lenscpp
