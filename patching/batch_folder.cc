#include "patching/batch_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <stdexcept>
#include <system_error>

#include "hooks/nearest.h"
#include "verify/store/write_file.h"

namespace lenscpp {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kPlan = "batch.json";

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[batch] " + what);
}

json plan_of(const Batch& batch) {
  json blocks = json::array(), rejected = json::array();
  for (const Block& block : batch.blocks()) {
    json ids = json::array(), indices = json::array();
    for (const Tokenized& e : block.experiments) {
      ids.push_back(e.id);
      indices.push_back(e.index);
    }
    blocks.push_back(
        {{"name", block.name}, {"experiments", std::move(ids)}, {"indices", std::move(indices)}});
  }
  for (const Rejection& one : batch.rejected()) rejected.push_back(to_json(one));
  return {{"identity", batch.identity()},
          {"experiments", batch.n_experiments()},
          {"shards", std::move(blocks)},
          {"rejected", std::move(rejected)}};
}

// What a batch must share with the one in the folder to go on with it.
void check_identity(const json& found, const json& needed, const fs::path& folder) {
  for (const auto& [key, value] : needed.items())
    if (found.value(key, json()) != value)
      refuse(folder.string() + " holds a batch with " + key + " " +
             found.value(key, json()).dump() + "; this one has " + value.dump() +
             ": give another folder, or the same options");
}

// Beside what a batch begins with, before its plan is there.
bool holds_other_files(const fs::path& folder) {
  if (!fs::exists(folder)) return false;
  for (const auto& entry : fs::directory_iterator(folder)) {
    std::string name = entry.path().filename().string();
    bool own = name == "shards" || name == "refused" || name == kPlan ||
               name.starts_with("." + std::string(kPlan) + ".");
    if (!own) return true;
  }
  return false;
}

std::string counted(std::int64_t n, const std::string& what) {
  return std::to_string(n) + " " + what + (n == 1 ? "" : "s");
}

}  // namespace

json read_plan(const fs::path& folder) {
  std::ifstream file(folder / kPlan, std::ios::binary);
  if (!file) refuse(folder.string() + " holds no batch: there is no " + kPlan + " in it");
  json plan = json::parse(file, nullptr, false);
  if (plan.is_discarded() || !plan.is_object() || !plan.contains("identity") ||
      !plan.contains("shards") || !plan.contains("rejected"))
    refuse((folder / kPlan).string() + " is not the plan of a batch, or was cut short");
  return plan;
}

BatchFolder::BatchFolder(fs::path folder, const Batch& batch, bool resume)
    : folder_(std::move(folder)), verified_(batch.verifies()) {
  if (fs::exists(folder_) && !fs::is_directory(folder_))
    refuse(folder_.string() + " is a file; needed: a folder, or a name for a new one");
  bool there = fs::exists(folder_ / kPlan);
  if (there) {
    json plan = read_plan(folder_);
    if (!resume)
      refuse(folder_.string() + " holds a batch already, of " +
             counted(std::ssize(plan.at("shards")), "shard") +
             ": resume it, or give another folder");
    check_identity(plan.at("identity"), batch.identity(), folder_);
  } else if (holds_other_files(folder_)) {
    refuse(folder_.string() + " holds other files and no batch; needed: a new or an empty folder");
  }
  fs::create_directories(folder_ / "shards");
  fs::create_directories(folder_ / "refused");
  json plan = plan_of(batch);
  // Processes that share the folder plan the same: it is written by whoever is first.
  if (!there || read_plan(folder_) != plan)
    write_file(folder_ / kPlan, plan.dump(-1, ' ', false, json::error_handler_t::replace));
}

fs::path shard_path(const fs::path& folder, const std::string& name) {
  return folder / "shards" / (name + ".h5");
}
fs::path refused_path(const fs::path& folder, const std::string& name) {
  return folder / "refused" / (name + ".h5");
}

std::optional<ShardFile> BatchFolder::finished(const std::string& name,
                                               std::vector<std::string>& damaged) const {
  fs::path path = shard_path(folder_, name);
  if (!fs::exists(path)) return {};
  try {
    ShardFile file = verified_ ? ShardFile::open(path) : ShardFile::open_unverified(path);
    file.verify_all();
    return file;
  } catch (const NotVerified& e) {
    damaged.push_back(e.what());
  } catch (const std::invalid_argument& e) {  // no file of this library any more
    damaged.push_back(e.what());
  }
  rename_durably(path, folder_ / "refused" / (name + ".damaged.h5"));
  return {};
}

void BatchFolder::put(const Shard& shard) const {
  save_shard(shard.status == Status::invalid ? refused_path(folder_, shard.name)
                                             : shard_path(folder_, shard.name),
             shard);
}

BatchFolder::Claim::Claim(int descriptor, fs::path path)
    : descriptor_(descriptor), path_(std::move(path)) {}
BatchFolder::Claim::Claim(Claim&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)), path_(std::move(other.path_)) {}
BatchFolder::Claim::~Claim() {
  if (descriptor_ < 0) return;
  ::unlink(path_.c_str());
  ::close(descriptor_);
}

std::optional<BatchFolder::Claim> BatchFolder::claim(const std::string& name) const {
  fs::path path = folder_ / "shards" / ("." + name + ".claim");
  for (;;) {
    int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0)
      throw std::system_error(errno, std::generic_category(), "[batch] " + path.string());
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      ::close(descriptor);
      return {};
    }
    // Whoever had it before may have removed the name meanwhile: the lock is then of no file.
    struct stat held {
    }, named{};
    bool same = ::fstat(descriptor, &held) == 0 && ::stat(path.c_str(), &named) == 0 &&
                held.st_ino == named.st_ino;
    if (same) return Claim(descriptor, path);
    ::close(descriptor);
  }
}

Status adopt_shard(const fs::path& folder, const fs::path& file) {
  // A refused shard may be read by nobody: what it says of itself only decides where it goes.
  Status status = ShardFile::open_unverified(file).status();
  if (status == Status::verified) ShardFile::open(file).verify_all();
  std::string name = file.stem().string();
  rename_durably(file,
                 status == Status::invalid ? refused_path(folder, name) : shard_path(folder, name));
  return status;
}

std::string BatchReport::summary() const {
  std::string text = std::to_string(before + done) + " of " + counted(shards, "shard") + " there";
  if (before > 0) text += " (" + std::to_string(before) + " from before)";
  if (refused > 0) text += ", " + std::to_string(refused) + " refused";
  if (failed > 0) text += ", " + std::to_string(failed) + " could not be run";
  if (elsewhere > 0) text += ", " + std::to_string(elsewhere) + " with other processes";
  if (left > 0) text += ", " + std::to_string(left) + " not begun";
  std::int64_t out = 0;
  std::string reasons;
  for (const auto& [reason, n] : rejected) {
    out += n;
    reasons += (reasons.empty() ? "" : ", ") + std::to_string(n) + " " + reason;
  }
  text += "; " + counted(experiments, "experiment");
  if (out > 0) text += ", " + std::to_string(out) + " rejected (" + reasons + ")";
  return text;
}

json to_json(const BatchReport& r) {
  return {{"experiments", r.experiments},
          {"shards", r.shards},
          {"before", r.before},
          {"done", r.done},
          {"refused", r.refused},
          {"failed", r.failed},
          {"elsewhere", r.elsewhere},
          {"left", r.left},
          {"patches", r.patches},
          {"seconds", r.seconds},
          {"seconds_checking", r.seconds_checking},
          {"rejected", r.rejected},
          {"refusals", r.refusals},
          {"failures", r.failures},
          {"damaged", r.damaged},
          {"stopped", r.stopped},
          {"complete", r.complete()},
          {"summary", r.summary()}};
}

namespace {

/// One process's share of a batch.
class Running {
 public:
  Running(const HookedTransformer& model, const std::vector<Experiment>& experiments,
          const BatchOptions& options, const FolderOptions& where)
      : where_(where),
        batch_(model, experiments, with_progress(options)),
        folder_(where.folder, batch_, where.resume) {
    const auto& blocks = batch_.blocks();
    for (std::int64_t i = where.share.index - 1; i < std::ssize(blocks); i += where.share.count)
      mine_.push_back(&blocks[static_cast<std::size_t>(i)]);
    for (const Block* block : mine_) progress_.patches += batch_.cells_of(*block);
    progress_.shards = report_.shards = std::ssize(mine_);
    report_.experiments = batch_.n_experiments();
    for (const Rejection& one : batch_.rejected())
      ++report_.rejected[std::string(name_of(one.reason))];
  }

  BatchReport run() {
    for (const Block* block : mine_) {
      if (where_.stop && where_.stop()) {
        report_.stopped = true;
        break;
      }
      one(*block);
      ++progress_.shards_done;
      tell();
    }
    report_.left = std::ssize(mine_) - progress_.shards_done;
    report_.seconds = seconds_;
    return std::move(report_);
  }

 private:
  BatchOptions with_progress(BatchOptions options) {
    options.progress = [this, given = options.progress](std::int64_t done, std::int64_t cells) {
      of_block_ = done;
      tell();
      if (given) given(done, cells);
    };
    return options;
  }

  void tell() {
    if (!where_.progress) return;
    std::chrono::duration<double> now = std::chrono::steady_clock::now() - block_start_;
    double seconds = seconds_ + (of_block_ > 0 ? now.count() : 0);
    BatchProgress p = progress_;
    p.patches_done += of_block_;
    p.refused = report_.refused;
    p.patches_a_second =
        seconds > 0 ? static_cast<double>(report_.patches + of_block_) / seconds : 0;
    if (p.patches_a_second > 0)
      p.seconds_left = static_cast<double>(p.patches - p.patches_done) / p.patches_a_second;
    where_.progress(p);
  }

  void one(const Block& block) {
    std::int64_t cells = batch_.cells_of(block);
    if (auto file = folder_.finished(block.name, report_.damaged)) {
      ++report_.before;
      for (const json& r : file->rejected()) ++report_.rejected[r.at("reason").get<std::string>()];
    } else if (auto claim = folder_.claim(block.name); !claim) {
      ++report_.elsewhere;
    } else if (!fs::exists(
                   shard_path(where_.folder, block.name))) {  // nor finished just now by another
      run_block(block);
    } else {
      ++report_.before;
    }
    of_block_ = 0;
    progress_.patches_done += cells;
  }

  void run_block(const Block& block) {
    block_start_ = std::chrono::steady_clock::now();
    try {
      Shard shard = batch_.run(block);
      folder_.put(shard);
      count(shard);
    } catch (const std::invalid_argument& e) {  // of this block alone: the others go on
      ++report_.failed;
      report_.failures.push_back(block.name.substr(0, 12) + ": " + e.what());
    }
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - block_start_;
    seconds_ += took.count();
  }

  void count(const Shard& shard) {
    for (const Rejection& r : shard.rejected) ++report_.rejected[std::string(name_of(r.reason))];
    report_.patches += shard.verdict.at("cells").get<std::int64_t>();
    report_.seconds_checking += shard.verdict.at("seconds").get<double>();
    if (shard.status != Status::invalid) {
      ++report_.done;
      return;
    }
    ++report_.refused;
    report_.refusals.push_back(shard.name.substr(0, 12) + ": " +
                               shard.verdict.at("first_failure").get<std::string>());
  }

  const FolderOptions& where_;
  Batch batch_;
  BatchFolder folder_;
  std::vector<const Block*> mine_;
  BatchProgress progress_;
  BatchReport report_;
  std::int64_t of_block_ = 0;  // patches of the running block
  double seconds_ = 0;         // spent in blocks
  std::chrono::steady_clock::time_point block_start_ = std::chrono::steady_clock::now();
};

}  // namespace

BatchReport run_experiments(const HookedTransformer& model,
                            const std::vector<Experiment>& experiments, const BatchOptions& options,
                            const FolderOptions& where) {
  if (where.share.count < 1 || where.share.index < 1 || where.share.index > where.share.count)
    refuse("shard " + std::to_string(where.share.index) + "/" + std::to_string(where.share.count) +
           "; allowed: I/N with I from 1 to N");
  return Running(model, experiments, options, where).run();
}

}  // namespace lenscpp
