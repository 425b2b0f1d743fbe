#include "patching/batch_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <iterator>
#include <set>
#include <stdexcept>
#include <system_error>

#include "hooks/checkpoint/json.h"
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

namespace {

bool is_name(const json& name) {
  return name.is_string() && name.get_ref<const std::string&>().size() == 64 &&
         name.get_ref<const std::string&>().find_first_not_of("0123456789abcdef") ==
             std::string::npos;
}

bool is_shard(const json& shard) {
  auto list_of = [&](const char* key, auto is) {
    return shard.contains(key) && shard.at(key).is_array() &&
           std::ranges::all_of(shard.at(key), is);
  };
  return shard.is_object() && shard.contains("name") && is_name(shard.at("name")) &&
         list_of("experiments", [](const json& id) { return id.is_string(); }) &&
         list_of("indices", [](const json& i) { return i.is_number_integer(); }) &&
         shard.at("experiments").size() == shard.at("indices").size();
}

bool is_rejection(const json& one) {
  return one.is_object() && one.value("id", json()).is_string() &&
         one.value("reason", json()).is_string();
}

bool is_plan(const json& plan) {
  return plan.is_object() && plan.value("identity", json()).is_object() &&
         plan.at("identity").value("verify", json()).is_string() &&
         plan.at("identity").value("direction", json()).is_string() &&
         plan.value("experiments", json()).is_number_integer() &&
         plan.value("shards", json()).is_array() && plan.value("rejected", json()).is_array() &&
         std::ranges::all_of(plan.at("shards"), is_shard) &&
         std::ranges::all_of(plan.at("rejected"), is_rejection);
}

// Every experiment of a plan.
std::set<std::string> ids_of(const json& plan) {
  std::set<std::string> ids;
  for (const json& shard : plan.at("shards"))
    for (const json& id : shard.at("experiments")) ids.insert(id.get<std::string>());
  for (const json& one : plan.at("rejected")) ids.insert(one.at("id").get<std::string>());
  return ids;
}

// A folder's batch may get more experiments, and loses none unasked.
void require_no_fewer(const json& before, const json& now, const fs::path& folder) {
  std::set<std::string> had = ids_of(before), has = ids_of(now);
  std::vector<std::string> lost;
  std::ranges::set_difference(had, has, std::back_inserter(lost));
  if (!lost.empty())
    refuse(folder.string() + " holds a batch with " + counted(std::ssize(lost), "experiment") +
           " that are not among these, " + in_quotes(lost[0]) +
           " the first: give them all, or another folder");
}

}  // namespace

json read_plan(const fs::path& folder) {
  constexpr std::size_t kMost_bytes = std::size_t{1} << 32;
  fs::path path = folder / kPlan;
  if (!fs::exists(path))
    refuse(folder.string() + " holds no batch: there is no " + kPlan + " in it");
  json plan = parse_json(read_text(path, kMost_bytes), "[batch] " + path.string());
  if (!is_plan(plan)) refuse(path.string() + " is not the plan of a batch, or was changed");
  return plan;
}

BatchFolder::BatchFolder(fs::path folder, const Batch& batch, bool resume)
    : folder_(std::move(folder)), verified_(batch.verifies()) {
  if (fs::exists(folder_) && !fs::is_directory(folder_))
    refuse(folder_.string() + " is a file; needed: a folder, or a name for a new one");
  if (folder_.empty()) refuse("the name of the folder is empty");
  json plan = plan_of(batch);
  bool there = fs::exists(folder_ / kPlan);
  if (there) {
    json before = read_plan(folder_);
    if (!resume)
      refuse(folder_.string() + " holds a batch already, of " +
             counted(std::ssize(before.at("shards")), "shard") +
             ": resume it, or give another folder");
    check_identity(before.at("identity"), batch.identity(), folder_);
    require_no_fewer(before, plan, folder_);
  } else if (holds_other_files(folder_)) {
    refuse(folder_.string() + " holds other files and no batch; needed: a new or an empty folder");
  }
  fs::create_directories(folder_ / "shards");
  fs::create_directories(folder_ / "refused");
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

std::optional<ShardFile> BatchFolder::finished(const std::string& name, std::string& damage) const {
  fs::path path = shard_path(folder_, name);
  if (!fs::exists(path)) return {};
  try {
    ShardFile file = verified_ ? ShardFile::open(path) : ShardFile::open_of_any_status(path);
    file.verify_all();
    return file;
  } catch (const NotVerified& e) {
    damage = e.what();
  } catch (const std::invalid_argument& e) {  // no file of this library any more
    damage = e.what();
  }
  return {};
}

void BatchFolder::set_aside(const std::string& name) const {
  fs::path to;
  std::int64_t number = 1;
  do to = folder_ / "refused" / (name + ".damaged-" + std::to_string(number++) + ".h5");
  while (fs::exists(to));
  rename_durably(shard_path(folder_, name), to);
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

fs::path BatchFolder::claim_path(const std::string& name) const {
  return folder_ / "shards" / ("." + name + ".claim");
}

void BatchFolder::remove_claim_of_the_dead(const std::string& name) const {
  if (fs::exists(claim_path(name))) claim(name);
}

std::optional<BatchFolder::Claim> BatchFolder::claim(const std::string& name) const {
  fs::path path = claim_path(name);
  for (;;) {
    int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0)
      throw std::system_error(errno, std::generic_category(), "[batch] " + path.string());
    if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
      int why = errno;
      ::close(descriptor);
      if (why == EINTR) continue;
      if (why == EWOULDBLOCK) return {};
      throw std::system_error(why, std::generic_category(),
                              "[batch] " + path.string() +
                                  " cannot be locked (parts of a batch need no locks where "
                                  "each has a folder of its own)");
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
  ShardFile shard = ShardFile::open_of_any_status(file);
  shard.verify_all();
  json plan = read_plan(folder);
  std::string name = file.stem().string();
  bool off = plan.at("identity").at("verify") == lenscpp::name_of(VerifyMode::off);
  Status status = shard.status(), good = off ? Status::unverified : Status::verified;
  if (status == Status::verified) ShardFile::open(file);
  if (status != good && status != Status::invalid)
    throw NotVerified("[batch] " + file.string() + " is " + std::string(lenscpp::name_of(status)) +
                      "; the shards of " + folder.string() + " are " +
                      std::string(lenscpp::name_of(good)));
  if (std::ranges::none_of(plan.at("shards"), [&](const json& s) { return s.at("name") == name; }))
    throw NotVerified("[batch] " + file.string() + " is no shard of the batch in " +
                      folder.string());
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
        folder_(where.folder, batch_, where.resume || where.share.count > 1) {
    const auto& blocks = batch_.blocks();
    for (std::int64_t i = 0; i < std::ssize(blocks); ++i)
      if (i % where.share.count == where.share.index - 1)
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
      if (given) unasked([&] { given(done, cells); });
    };
    return options;
  }

  // What a caller's function throws ends the batch, whatever it is.
  template <class Call>
  void unasked(const Call& call) {
    try {
      call();
    } catch (...) {
      ended_by_caller_ = true;
      throw;
    }
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
    unasked([&] { where_.progress(p); });
  }

  void one(const Block& block) {
    if (!there(block))
      if (auto claim = folder_.claim(block.name); !claim || refused_meanwhile(block))
        ++report_.elsewhere;
      else if (!there(block))  // nor finished just now by another
        run_block(block);
    of_block_ = 0;
    progress_.patches_done += batch_.cells_of(block);
  }

  // Whether the shard is finished, which is then counted; a damaged one is set aside by whoever has
  // its claim.
  bool there(const Block& block) {
    std::string damage;
    auto file = folder_.finished(block.name, damage);
    if (file) {
      ++report_.before;
      folder_.remove_claim_of_the_dead(block.name);
      for (const json& r : file->rejected()) ++report_.rejected[r.at("reason").get<std::string>()];
    } else if (damaged_.contains(block.name)) {
      folder_.set_aside(block.name);
      report_.damaged.push_back(damage);
    } else if (!damage.empty()) {
      damaged_.insert(block.name);
    }
    return file.has_value();
  }

  // By another process, since this one began.
  bool refused_meanwhile(const Block& block) const {
    fs::path path = refused_path(where_.folder, block.name);
    std::error_code none;
    auto written = fs::last_write_time(path, none);
    return !none && written >= start_;
  }

  // A shard that cannot be run does not end the others; a device, a disk or a caller does.
  void run_block(const Block& block) {
    block_start_ = std::chrono::steady_clock::now();
    auto failed = [&](const std::exception& e) {
      if (ended_by_caller_) throw;
      ++report_.failed;
      report_.failures.push_back(block.name.substr(0, 12) + ": " + e.what());
    };
    try {
      Shard shard = batch_.run(block);
      folder_.put(shard);
      count(shard);
    } catch (const DeviceError&) {
      throw;
    } catch (const std::system_error&) {
      throw;
    } catch (const std::runtime_error& e) {
      failed(e);
    } catch (const std::logic_error& e) {
      failed(e);
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
  bool ended_by_caller_ = false;
  fs::file_time_type start_ = fs::file_time_type::clock::now();
  Batch batch_;
  BatchFolder folder_;
  std::vector<const Block*> mine_;
  std::set<std::string> damaged_;  // seen so once; looked at again under a claim
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
