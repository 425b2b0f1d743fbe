// Activation patching over a grid of places: one activation at a time from one run into another,
// and what that does to a metric. Every patched run is verified.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lens/hooked_transformer.h"
#include "patching/metrics.h"
#include "patching/sweep.h"

namespace lenscpp {

/// denoise: the clean run's activation goes into the corrupted prompt (what suffices to restore the
/// answer?). noise: the corrupted run's goes into the clean prompt (what is needed for it?).
enum class Direction : std::uint8_t { denoise, noise };
std::string_view name_of(Direction direction);
/// Throws std::invalid_argument naming what is allowed.
Direction direction_from_name(std::string_view name);

/// Which patches, and how they are run.
struct GridOptions {
  Site site;               // any that can be edited
  std::vector<Axis> over;  // layer (of a site that has layers) and axes of the site, in any order
  Direction direction = Direction::denoise;
  /// Those that an axis of positions (of patterns: of queries) goes over, negative from the end;
  /// unset: all.
  std::optional<std::vector<std::int64_t>> positions = {};
  /// Of the patched runs; unset: by checksums, unless the model's verification is off.
  std::optional<VerifyMode> verify = {};
  Savings savings = {};
  /// Patched copies of the prompts share a run: as many as fit here with their activations, in
  /// bytes.
  std::size_t max_bytes = std::size_t{256} << 20;
  std::optional<std::int64_t> max_cells = {};        // and at most so many cells a run
  Interference interference = {};                    // faults, in every run that the grid makes
  std::shared_ptr<DeviceFaults> device_faults = {};  // those inside the simulated device
  /// Called before each run and at the end; what it throws ends the sweep.
  std::function<void(std::int64_t done, std::int64_t cells)> progress = {};
};

/// One axis of a grid. Labels: layer and head numbers; positions with their token where all prompts
/// have the same: "10: John", or "10: John/ Mary" where the corrupted prompt has another.
struct GridAxis {
  Axis axis;
  std::vector<std::string> labels;
};

/// What the checks of all patched runs came to.
struct GridVerdict {
  Status status = Status::unverified;  // verified: every cell of every run passed
  VerifyMode mode = VerifyMode::off;
  std::int64_t cells = 0, runs = 0, refused_runs = 0;
  std::int64_t equal_cells = 0;             // patches that change nothing that is read: not run
  std::int64_t n_compared = 0;              // elements, of the base run and of runs that passed
  std::int64_t n_projected = 0;             // elements checked by checksums alone
  double worst_ratio = 0;                   // error / bound, in runs that passed
  std::string worst_name;                   // where that is
  double seconds = 0;                       // spent checking
  std::vector<std::int64_t> refused_cells;  // flat indices into the values, increasing
  std::string first_failure;                // of the first refused run: what, where, how bad

  /// One line.
  std::string summary() const;
};
nlohmann::json to_json(const GridVerdict& verdict);

/// A grid and everything that one needs to judge it. Immutable; made by patch_grid, and by
/// load_grid from what that made.
class GridResult {
 public:
  Site site() const { return state_->site; }
  Direction direction() const { return state_->direction; }
  const std::vector<GridAxis>& axes() const { return state_->axes; }
  /// The metric of each patched run, float64, shaped by the axes; NaN where the run was refused.
  const Array& values() const { return state_->values; }
  /// The same of each prompt alone, the prompts last: [axes..., batch]. One prompt where the metric
  /// is a function that returns one number for them all.
  const Array& values_of_prompts() const { return state_->values_of_prompts; }
  const std::vector<double>& clean_of_prompts() const { return state_->clean_of_prompts; }
  const std::vector<double>& corrupted_of_prompts() const { return state_->corrupted_of_prompts; }
  double clean() const { return state_->clean; }          // the metric of the clean run
  double corrupted() const { return state_->corrupted; }  // and of the corrupted one
  /// How far rounding moves the metric: the largest of |value - float64's| of the two base runs and
  /// of two sampled cells (with sources as the device made them), and of |value - the whole run's|
  /// of those cells. Cells that were not sampled may be further off. The float64 runs are made when
  /// first asked for.
  double error_bar() const { return state_->error_bar.get(); }
  const nlohmann::json& metric() const { return state_->metric; }
  const GridVerdict& verdict() const { return state_->verdict; }
  const RunRecord& clean_record() const { return state_->clean_record; }
  const RunRecord& corrupted_record() const { return state_->corrupted_record; }
  /// Values on a scale where the corrupted run is 0 and the clean one 1, in both directions. Throws
  /// std::invalid_argument when the two differ by no more than rounding.
  Array normalized() const;

 private:
  friend class Sweep;
  friend class GridReader;
  struct State {
    Site site;
    Direction direction;
    std::vector<GridAxis> axes;
    Array values, values_of_prompts;
    double clean, corrupted;
    std::vector<double> clean_of_prompts, corrupted_of_prompts;
    std::shared_future<double> error_bar;
    nlohmann::json metric;
    GridVerdict verdict;
    RunRecord clean_record, corrupted_record;
  };
  explicit GridResult(State state) : state_(std::make_shared<const State>(std::move(state))) {}

  std::shared_ptr<const State> state_;
};

/// Some patched runs were INVALID. verdict(), record() and unverified_cache() are the first one's;
/// `partial` is the grid with NaN in the cells that were refused.
class GridFailed : public VerificationFailed {
 public:
  GridFailed(const VerificationFailed& first, GridResult partial);
  const char* what() const noexcept override { return message_->c_str(); }
  const GridResult& partial() const { return partial_; }

 private:
  GridResult partial_;
  std::shared_ptr<const std::string> message_;
};

/// Patches every cell. The pair may be several prompts, which are patched together; a cell is the
/// mean of the metric over them. `clean` must hold the site in every layer when denoising. The base
/// runs are verified whatever `verify` says of the patched ones.
/// Throws GridFailed when runs were refused, VerificationFailed when a base run was;
/// std::invalid_argument for a pair of unequal lengths, an activation that is missing, a run of
/// another model, an edited or sliced one, a site or axis that cannot be patched, or a metric that
/// is not a finite number.
GridResult patch_grid(const HookedTransformer& model, const VerifiedCache& clean,
                      const Tokens& corrupted, const GridOptions& options, const Metric& metric);
/// The same with a corrupted run that was made before; it must hold the site when noising.
GridResult patch_grid(const HookedTransformer& model, const VerifiedCache& clean,
                      const VerifiedCache& corrupted, const GridOptions& options,
                      const Metric& metric);

/// The site that a user's name means: "resid_pre", "z", "head_z", "attn.hook_z", "hook_embed", ...
/// Throws std::invalid_argument naming the nearest hook points, and for a name with a layer in it.
Site grid_site(std::string_view name, const Config& config);
/// "resid_pre", "z", "ln1.hook_scale": the shortest name that grid_site takes.
std::string short_name(Site site);
/// The hook points of a site, one a layer.
std::vector<std::string> grid_hooks(Site site, const Config& config);
/// The axis that a user's name means: "layer", "pos", "head", "head_index", "kv_head", "query" or
/// "dest_pos", "key" or "src_pos"; "pos" and "head" as the site has them. Throws
/// std::invalid_argument naming what the site has.
Axis grid_axis(Site site, std::string_view name);
/// Throws std::invalid_argument for a grid that patch_grid would refuse: a site that cannot be
/// patched, axes that it has not, the same twice, no layer.
void check_grid(Site site, const std::vector<Axis>& over, const Config& config);
/// The axes of a site that can be swept, layer first.
std::vector<Axis> grid_axes(Site site);

}  // namespace lenscpp
