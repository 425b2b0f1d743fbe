// A batch on disk, which survives whatever ends the process:
//
//   DIR/batch.json            the plan: model, options, experiments of each shard, rejections
//   DIR/shards/NAME.h5        shards that are VERIFIED (or UNVERIFIED, where that was asked for)
//   DIR/refused/NAME.h5       shards that were INVALID, with their verdicts; never merged
//   DIR/refused/NAME.damaged.h5   shards that no longer are what was written
//   DIR/merged.h5             what merge_batch makes of them
//
// A shard appears by renaming a finished file. A restart runs what is missing. Processes that share
// the folder share the work: each claims a shard by a lock that ends with the process.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "patching/batch.h"
#include "patching/shard_file.h"

namespace lenscpp {

/// Which shards are this process's: number `index` of `count`, from 1.
struct ShardShare {
  std::int64_t index = 1, count = 1;
};

/// How far a batch is.
struct BatchProgress {
  std::int64_t shards_done = 0, shards = 0;  // of this process's share
  std::int64_t patches_done = 0, patches = 0;
  std::int64_t refused = 0;
  double patches_a_second = 0;
  std::optional<double> seconds_left = {};  // unknown before the first shard
};

/// Where and how a batch runs.
struct FolderOptions {
  std::filesystem::path folder;
  bool resume = false;  // go on with what is there; always so of a share, which is one of several
  ShardShare share = {};
  std::function<void(const BatchProgress&)> progress = {};
  /// Asked between shards: true ends the batch, which can be resumed.
  std::function<bool()> stop = {};
};

/// What became of this process's share.
struct BatchReport {
  std::int64_t experiments = 0;  // of the whole batch
  std::int64_t shards = 0, before = 0, done = 0, refused = 0, failed = 0;
  std::int64_t elsewhere = 0;                    // claimed by other processes
  std::int64_t left = 0;                         // not begun
  std::int64_t patches = 0;                      // run now
  double seconds = 0, seconds_checking = 0;      // for them
  std::map<std::string, std::int64_t> rejected;  // experiments by reason, in shards there are
  std::vector<std::string> refusals;             // "NAME: what, where, how bad"
  std::vector<std::string> failures;             // "NAME: message" of shards that could not be run
  std::vector<std::string> damaged;              // files that were set aside and run anew
  bool stopped = false;
  /// All shards of the share are there.
  bool complete() const { return before + done == shards; }
  /// One line.
  std::string summary() const;
};
nlohmann::json to_json(const BatchReport& report);

/// The plan of a folder: {identity, experiments, shards: [{name, experiments: [id], indices}],
/// rejected}. Throws std::invalid_argument where there is none.
nlohmann::json read_plan(const std::filesystem::path& folder);

/// Where the shard of a name is, and where it is when it was refused.
std::filesystem::path shard_path(const std::filesystem::path& folder, const std::string& name);
std::filesystem::path refused_path(const std::filesystem::path& folder, const std::string& name);

/// A folder of shards.
class BatchFolder {
 public:
  /// Makes the folder, or goes on with it. Throws std::invalid_argument when it holds a batch
  /// already and `resume` is false, one of another model or other options, or one with experiments
  /// that this one has not; std::system_error when it cannot be written.
  BatchFolder(std::filesystem::path folder, const Batch& batch, bool resume);

  /// The shard, when it is there and every value of it is as written. `damage` gets what is wrong
  /// with one that is there and is not.
  std::optional<ShardFile> finished(const std::string& name, std::string& damage) const;
  /// Puts a damaged shard among the refused ones.
  void set_aside(const std::string& name) const;
  /// Puts a shard where its status says.
  void put(const Shard& shard) const;

  /// A claim to run a shard, for as long as it lives.
  class Claim {
   public:
    ~Claim();
    Claim(Claim&& other) noexcept;
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

   private:
    friend class BatchFolder;
    Claim(int descriptor, std::filesystem::path path);
    int descriptor_;
    std::filesystem::path path_;
  };
  /// Nothing when another process has it.
  std::optional<Claim> claim(const std::string& name) const;
  /// Of a process that was killed between finishing a shard and letting go of it.
  void remove_claim_of_the_dead(const std::string& name) const;

 private:
  std::filesystem::path claim_path(const std::string& name) const;

  std::filesystem::path folder_;
  bool verified_;
};

/// Puts a shard's file, run elsewhere, where its status says, and returns that. Throws NotVerified
/// for a file that is not what was written, is no shard of the batch in the folder, or has a status
/// that such a batch has not; std::system_error.
Status adopt_shard(const std::filesystem::path& folder, const std::filesystem::path& file);

/// Runs this process's share of a batch. A shard that is refused, or cannot be run, does not end
/// it. Throws what Batch and BatchFolder throw, DeviceError, std::system_error when the disk
/// refuses; what was finished before is on the disk then.
BatchReport run_experiments(const HookedTransformer& model,
                            const std::vector<Experiment>& experiments, const BatchOptions& options,
                            const FolderOptions& where);

}  // namespace lenscpp
