// The shards of a batch as one sealed file of kind "batch":
//
//   /batch              {identity, grids: [{key, axes: [{axis, labels}]}], n, rejected: [{id,
//   reason,
//                       what}], reasons: {reason: number}, missing: [shard], refused: [{name,
//                       first_failure}], error_bar, verdict, provenance: [{shard, n, ...}]}
//   /experiments/000000 [{id, index, template, clean, corrupted, ...}], kRowsOfDocument a document
//   /index              int64 [n]: the place of each row among the experiments that were given
//   /cluster            int64 [n]: equal where the template is; each its own without one
//   /clean /corrupted   float64 [n]: the metric of the two runs
//   /values/KEY         float64 [n, axes...]: the metric of each patched run; NaN where an
//                       experiment has no such cell (another length, other sites)
//   /statistics/KEY     to_json(GridStatistics)
//
// Rows stand in the order of the shards; rejected experiments have none.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "patching/batch_folder.h"
#include "patching/statistics.h"

namespace lenscpp {

constexpr std::int64_t kRowsOfDocument = 1024;

struct MergeOptions {
  bool partial = false;  // also when shards are missing, which the file then says
  StatisticsOptions statistics = {};
};

/// Merges the shards of a folder into `out`. Every byte of every shard is checked. Throws
/// std::invalid_argument when shards are missing or refused (and not `partial`), or nothing is left
/// to merge; NotVerified naming the shard that may not be used; std::system_error.
void merge_batch(const std::filesystem::path& folder, const std::filesystem::path& out,
                 const MergeOptions& options = {});

/// A merged batch, read a part at a time.
class MergedFile {
 public:
  /// Throws what SealedFile::open throws; std::invalid_argument for another kind of file,
  /// NotVerified where it is no verified batch.
  static MergedFile open(const std::filesystem::path& path);
  /// Whatever its status and digests say.
  static MergedFile open_unverified(const std::filesystem::path& path);

  Status status() const { return verified_ ? file_.status() : Status::unverified; }
  const std::string& origin() const { return file_.origin(); }
  /// /batch as it is in the file.
  const nlohmann::json& about() const { return about_; }
  std::int64_t n() const { return n_; }
  const std::vector<ShardFile::Grid>& grids() const { return grids_; }
  /// The grid of a key, or of the site's name where that says which. Throws std::invalid_argument
  /// naming what there is.
  const ShardFile::Grid& grid(const std::string& name) const;
  Array index() const { return file_.array("/index"); }
  Array cluster() const { return file_.array("/cluster"); }
  Array clean() const { return file_.array("/clean"); }
  Array corrupted() const { return file_.array("/corrupted"); }
  /// Rows [begin, end) of a grid: float64 [rows, axes...]; reads the shards' rows that they are in.
  Array rows(const std::string& key, std::int64_t begin, std::int64_t end) const;
  /// Rows [begin, end) of the experiments, as JSON. Throws std::out_of_range.
  nlohmann::json experiments(std::int64_t begin, std::int64_t end) const;
  GridStatistics statistics(const std::string& key) const;
  void verify_all() const { file_.verify_all(); }

 private:
  MergedFile(SealedFile file, bool verified);
  SealedFile file_;
  bool verified_;
  nlohmann::json about_;
  std::int64_t n_ = 0;
  std::vector<ShardFile::Grid> grids_;
};

}  // namespace lenscpp
