// Many experiments as blocks of like ones: a block is one batch of prompts through the sweep
// engine, and what it comes to is a shard. Which shards there are follows from the model, the
// experiments and the options alone, and so does each one's name: whoever plans the same batch, on
// whatever machine, names the same shards.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "patching/experiments.h"

namespace lenscpp {

/// What is computed, and how.
struct BatchOptions {
  TokenizeOptions tokenize = {};
  Direction direction = Direction::denoise;
  /// Of the patched runs; unset: by checksums, unless the model's verification is off. The runs of
  /// the prompts themselves are checked whatever it says.
  std::optional<VerifyMode> verify = {};
  std::int64_t block = 32;         // experiments a shard, at most
  double least_difference = 1e-3;  // of |clean - corrupted|, in units of the metric
  bool keep_wrong = false;         // also pairs whose clean run prefers the wrong answer
  /// Faults, in every run, and what they are in words. They are not part of a shard's name: with
  /// any of them it is never VERIFIED, also where what they did passed the checks.
  Interference interference = {};
  std::vector<std::string> injected = {};
  std::shared_ptr<DeviceFaults> device_faults = {};
  /// Called while a block runs, with how many of its patches are done; what it throws ends it.
  std::function<void(std::int64_t done, std::int64_t cells)> progress = {};
};

/// Experiments of as many tokens, the same sites, positions and metric: they run together.
struct Block {
  std::string name;  // SHA-256 of the model's digest, the experiments and the options
  std::vector<Tokenized> experiments;
};

/// One grid of a shard, of every experiment in it.
struct ShardGrid {
  std::string key;  // "resid_pre_by_layer_pos"; of another metric than logit_diff "..._of_prob"
  std::vector<GridAxis> axes;  // labels of positions: their names, else their numbers
  Array values;                // float64 [experiments, axes...]
};

/// What a block came to.
struct Shard {
  std::string name;
  Status status = Status::unverified;
  std::vector<Tokenized>
      experiments;  // a row of everything below; rejected ones are not among them
  std::vector<Rejection> rejected;
  std::vector<double> clean, corrupted;  // the metric
  /// How far rounding moves the metric: the largest |device - float64| of the two runs of its first
  /// experiment.
  double error_bar = 0;
  std::vector<ShardGrid> grids;  // where the status is INVALID: those that were computed
  /// {mode, cells, runs, refused_runs, equal_cells, n_compared, n_projected, worst_ratio,
  /// worst_name, seconds, first_failure}, over all its runs.
  nlohmann::json verdict;
  /// {model, device, device_name, dtype, build_commit, threads, time, seconds, host}
  nlohmann::json provenance;
};

/// A planned batch.
class Batch {
 public:
  /// Turns experiments into tokens and blocks. Throws what tokenize throws; std::invalid_argument
  /// for an id that is there twice, for no experiment at all, and for options out of range.
  Batch(const HookedTransformer& model, const std::vector<Experiment>& experiments,
        BatchOptions options);

  const std::vector<Block>& blocks() const { return blocks_; }
  /// Of experiments that are in no block.
  const std::vector<Rejection>& rejected() const { return rejected_; }
  std::int64_t n_experiments() const { return n_experiments_; }
  /// What names depend on beside the experiments: {format, model_digest, direction, verify, ...}.
  const nlohmann::json& identity() const { return identity_; }
  /// Whether its shards are VERIFIED; UNVERIFIED where verification is off.
  bool verifies() const { return verify_ != VerifyMode::off; }
  /// Patches of a block when none of its experiments is rejected.
  std::int64_t cells_of(const Block& block) const;
  /// Runs a block. A run that is refused makes a shard whose status is INVALID; throws DeviceError,
  /// std::bad_alloc, std::invalid_argument for a metric that is no finite number, and what
  /// `progress` throws.
  Shard run(const Block& block) const;

 private:
  friend class BlockRun;
  std::string name_of(const std::vector<Tokenized>& experiments) const;

  const HookedTransformer& model_;
  BatchOptions options_;
  VerifyMode verify_;
  nlohmann::json identity_;
  std::int64_t n_experiments_;
  std::vector<Block> blocks_;
  std::vector<Rejection> rejected_;
};

}  // namespace lenscpp
