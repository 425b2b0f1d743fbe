// A shard as a sealed file of kind "shard":
//
//   /shard            {name, verdict, provenance, error_bar, grids: [{key, axes: [{axis,
//   labels}]}]} /experiments      [{id, template, clean, corrupted, answer, wrong, sites,
//   positions, metric}]:
//                     tokens; a row of every array each
//   /rejected         [{id, reason, what}]
//   /clean /corrupted float64 [n]: the metric of the two runs
//   /values/KEY       float64 [n, axes...]: the metric of each patched run
#pragma once

#include <filesystem>

#include "patching/batch.h"
#include "verify/store/sealed_file.h"

namespace lenscpp {

/// Saves a shard with its status. Throws what SealedWriter throws.
void save_shard(const std::filesystem::path& path, const Shard& shard);

/// A shard in a file, read a part at a time: what is small at once, values when asked for.
class ShardFile {
 public:
  /// Throws what SealedFile::open throws; std::invalid_argument for another kind of file;
  /// NotVerified for a shard of another name than its file has, or one whose contents do not fit
  /// together.
  static ShardFile open(const std::filesystem::path& path);
  /// The same for a shard of any status: what is in it is what was written, no more.
  static ShardFile open_of_any_status(const std::filesystem::path& path);
  /// Whatever its status and digests say.
  static ShardFile open_unverified(const std::filesystem::path& path);

  struct Grid {
    std::string key;
    std::vector<GridAxis> axes;
  };
  /// Of a file that was opened unverified never VERIFIED: nothing vouches for it.
  Status status() const {
    return checked_ || file_.status() == Status::invalid ? file_.status() : Status::unverified;
  }
  const std::string& origin() const { return file_.origin(); }
  const std::string& name() const { return name_; }
  std::int64_t n() const { return static_cast<std::int64_t>(experiments_.size()); }
  const nlohmann::json& experiments() const { return experiments_; }  // as in the file
  const nlohmann::json& rejected() const { return rejected_; }
  const nlohmann::json& verdict() const { return verdict_; }
  const nlohmann::json& provenance() const { return provenance_; }
  double error_bar() const { return error_bar_; }
  const std::vector<Grid>& grids() const { return grids_; }
  const Grid* grid(const std::string& key) const;
  Array clean() const { return file_.array("/clean"); }
  Array corrupted() const { return file_.array("/corrupted"); }
  /// [n, axes...] of a grid that it has. Throws what SealedFile::array throws.
  Array values(const std::string& key) const { return file_.array("/values/" + key); }
  /// Reads and checks every byte.
  void verify_all() const { file_.verify_all(); }

 private:
  ShardFile(SealedFile file, bool checked);
  SealedFile file_;
  bool checked_;
  std::string name_;
  nlohmann::json experiments_, rejected_, verdict_, provenance_;
  double error_bar_ = 0;
  std::vector<Grid> grids_;
};

/// Axes of grids in files: [{axis, labels}].
nlohmann::json axes_to_json(const std::vector<GridAxis>& axes);
/// Throws nlohmann::json::exception, std::logic_error for no axis of that name.
std::vector<GridAxis> axes_from_json(const nlohmann::json& json);

}  // namespace lenscpp
