#include "patching/merged_file.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "hooks/nearest.h"
#include "lens/torch_parallel.h"

namespace lenscpp {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

std::string document_name(std::int64_t number) {
  std::string digits = std::to_string(number);
  return "/experiments/" + std::string(6 - std::min<std::size_t>(6, digits.size()), '0') + digits;
}

bool is_number(const std::string& label) {
  return !label.empty() && std::ranges::all_of(label, [](char c) { return c >= '0' && c <= '9'; });
}

// Labels of two grids of one key: numbers in their order, names as they come.
void unite(std::vector<std::string>& all, const std::vector<std::string>& more) {
  for (const std::string& label : more)
    if (std::ranges::find(all, label) == all.end()) all.push_back(label);
  if (std::ranges::all_of(all, is_number))
    std::ranges::sort(all, [](const std::string& a, const std::string& b) {
      return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
}

/// The shards of one folder on their way into one file.
class Merging {
 public:
  Merging(fs::path folder, const MergeOptions& options)
      : folder_(std::move(folder)), o_(options), plan_(read_plan(folder_)) {
    verified_ = plan_.at("identity").at("verify") != name_of(VerifyMode::off);
    for (const json& block : plan_.at("shards")) find(block.at("name"), block.at("indices"));
    require_all();
    for (const Part& part : parts_) n_ += part.n;
    if (n_ == 0)
      throw std::invalid_argument("[merge] " + folder_.string() +
                                  " holds no experiment that was run and not rejected");
  }

  void write(const fs::path& out) {
    SealedWriter writer(out, FileKind::batch);
    write_experiments(writer);
    json grids = json::array();
    for (const ShardFile::Grid& grid : grids_) {
      grids.push_back({{"key", grid.key}, {"axes", axes_to_json(grid.axes)}});
      write_grid(writer, grid);
    }
    json rejected = plan_.at("rejected"), reasons = json::object(), provenance = json::array();
    for (const Part& part : parts_) {
      for (const json& one : part.rejected) rejected.push_back(one);
      provenance.push_back(part.provenance);
      provenance.back()["shard"] = part.name;
      provenance.back()["n"] = part.n;
      provenance.back()["verdict"] = part.verdict;
    }
    for (const json& one : rejected) {
      json& number = reasons[one.at("reason").get<std::string>()];
      number = number.is_null() ? 1 : number.get<std::int64_t>() + 1;
    }
    writer.document("/batch", {{"identity", plan_.at("identity")},
                               {"n", n_},
                               {"grids", grids},
                               {"rejected", rejected},
                               {"reasons", reasons},
                               {"missing", missing_},
                               {"refused", refused_},
                               {"error_bar", error_bar_},
                               {"verdict", verdict()},
                               {"provenance", provenance}});
    writer.commit(verified_ ? Status::verified : Status::unverified);
  }

 private:
  // What is kept of a shard: there may be more than a process may open.
  struct Part {
    std::string name;
    std::int64_t n;
    json rejected, verdict, provenance;
    std::map<std::string, std::int64_t> index_of;  // an id's place among the experiments given
  };

  ShardFile opened(const std::string& name) const {
    fs::path path = shard_path(folder_, name);
    return verified_ ? ShardFile::open(path) : ShardFile::open_of_any_status(path);
  }

  void find(const std::string& name, const json& indices) {
    if (!fs::exists(shard_path(folder_, name))) {
      missing_.push_back(name);
      note_refused(name);
      return;
    }
    ShardFile file = opened(name);
    file.verify_all();
    if (file.n() > 0) unite_grids(file);
    error_bar_ = std::max(error_bar_, file.error_bar());
    Part part{name, file.n(), file.rejected(), file.verdict(), file.provenance(), {}};
    const json& planned = plan_.at("shards")[parts_.size() + missing_.size()].at("experiments");
    for (std::size_t i = 0; i < planned.size(); ++i)
      part.index_of[planned[i].get<std::string>()] = indices[i];
    parts_.push_back(std::move(part));
  }

  void note_refused(const std::string& name) {
    fs::path path = refused_path(folder_, name);
    if (!fs::exists(path)) return;
    json why = "its file cannot be read";
    try {
      why = ShardFile::open_of_any_status(path).verdict().at("first_failure");
    } catch (const std::exception& e) {
      why = e.what();
    }
    refused_.push_back({{"name", name}, {"first_failure", why}});
  }

  void require_all() const {
    check(o_.statistics);
    if (missing_.empty() || (o_.partial && !parts_.empty())) return;
    std::string what = std::to_string(missing_.size()) + " of " +
                       std::to_string(missing_.size() + parts_.size()) + " shards of " +
                       folder_.string() + " are missing";
    if (!refused_.empty())
      what += ", " + std::to_string(refused_.size()) + " of them because they were INVALID";
    throw std::invalid_argument("[merge] " + what + ": resume the batch" +
                                (parts_.empty() ? "" : ", or ask for a partial merge"));
  }

  void unite_grids(const ShardFile& shard) {
    for (const ShardFile::Grid& grid : shard.grids()) {
      auto known = std::ranges::find(grids_, grid.key, &ShardFile::Grid::key);
      if (known == grids_.end()) {
        grids_.push_back(grid);
        continue;
      }
      for (std::size_t a = 0; a < grid.axes.size(); ++a)
        unite(known->axes.at(a).labels, grid.axes[a].labels);
    }
  }

  void write_experiments(SealedWriter& writer) {
    std::map<std::pair<bool, std::string>, std::int64_t> clusters;  // of a template, or by itself
    std::vector<std::int64_t> indices;
    json rows = json::array();
    std::int64_t documents = 0;
    for (const Part& part : parts_) {
      ShardFile file = opened(part.name);
      std::vector<double> clean = file.clean().to_doubles(),
                          corrupted = file.corrupted().to_doubles();
      clean_.insert(clean_.end(), clean.begin(), clean.end());
      corrupted_.insert(corrupted_.end(), corrupted.begin(), corrupted.end());
      for (json row : file.experiments()) {
        auto id = row.at("id").get<std::string>(), name = row.at("template").get<std::string>();
        indices.push_back(part.index_of.at(id));
        row["index"] = indices.back();
        auto cluster = clusters.emplace(name.empty() ? std::pair(false, id) : std::pair(true, name),
                                        std::ssize(clusters));
        cluster_.push_back(cluster.first->second);
        rows.push_back(std::move(row));
        if (std::ssize(rows) < kRowsOfDocument) continue;
        writer.document(document_name(documents++), rows);
        rows = json::array();
      }
    }
    if (!rows.empty()) writer.document(document_name(documents), rows);
    writer.array("/index", Array::of(std::span<const std::int64_t>(indices), {n_}));
    writer.array("/cluster", Array::of(std::span<const std::int64_t>(cluster_), {n_}));
    writer.array("/clean", Array::of(std::span<const double>(clean_), {n_}));
    writer.array("/corrupted", Array::of(std::span<const double>(corrupted_), {n_}));
  }

  // The values of a shard where the merged grid has them.
  static Array placed(const ShardFile& shard, const ShardFile::Grid& grid) {
    Shape shape{shard.n()};
    for (const GridAxis& axis : grid.axes) shape.push_back(std::ssize(axis.labels));
    MutableArray result(shape, DType::f64);
    std::fill_n(result.data<double>(), result.numel(), std::numeric_limits<double>::quiet_NaN());
    const ShardFile::Grid* own = shard.grid(grid.key);
    if (own == nullptr) return std::move(result).freeze();
    std::vector<std::vector<std::int64_t>> to(grid.axes.size());
    for (std::size_t a = 0; a < grid.axes.size(); ++a)
      for (const std::string& label : own->axes.at(a).labels)
        to[a].push_back(std::ranges::find(grid.axes[a].labels, label) -
                        grid.axes[a].labels.begin());
    Array values = shard.values(grid.key);
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      std::int64_t left = i, at = 0, stride = 1;
      for (std::size_t a = to.size(); a-- > 0;) {
        auto n = std::ssize(to[a]);
        at += stride * to[a][static_cast<std::size_t>(left % n)];
        left /= n;
        stride *= shape[a + 1];
      }
      result.data<double>()[left * stride + at] = values[i];
    }
    return std::move(result).freeze();
  }

  void write_grid(SealedWriter& writer, const ShardFile::Grid& grid) {
    Shape shape{n_};
    for (const GridAxis& axis : grid.axes) shape.push_back(std::ssize(axis.labels));
    MutableArray all(shape, DType::f64);
    writer.begin_rows("/values/" + grid.key, DType::f64, shape);
    double* to = all.data<double>();
    for (const Part& part : parts_) {
      if (part.n == 0) continue;
      Array rows = placed(opened(part.name), grid);
      writer.append_rows(rows);
      to = std::ranges::copy(rows.as<double>(), to).out;
    }
    Measured measured{std::move(all).freeze(), clean_, corrupted_, cluster_,
                      direction_from_name(plan_.at("identity").at("direction").get<std::string>())};
    StatisticsOptions statistics = o_.statistics;
    statistics.error_bar = error_bar_;
    writer.document("/statistics/" + grid.key,
                    to_json(statistics_of(measured, statistics, torch_parallel_for)));
  }

  json verdict() const {
    json all{{"status", name_of(verified_ ? Status::verified : Status::unverified)},
             {"mode", plan_.at("identity").at("verify")},
             {"shards", parts_.size()},
             {"worst_ratio", 0.0},
             {"worst_name", ""}};
    for (const char* sum : {"cells", "runs", "equal_cells", "n_compared", "n_projected"}) {
      std::int64_t total = 0;
      for (const Part& part : parts_) total += part.verdict.at(sum).get<std::int64_t>();
      all[sum] = total;
    }
    for (const Part& part : parts_) {
      double ratio = part.verdict.at("worst_ratio");
      if (!(ratio > all["worst_ratio"].get<double>())) continue;
      all["worst_ratio"] = ratio;
      all["worst_name"] = part.verdict.at("worst_name");
    }
    return all;
  }

  fs::path folder_;
  const MergeOptions& o_;
  json plan_;
  bool verified_ = false;
  std::vector<Part> parts_;
  std::vector<std::string> missing_;
  json refused_ = json::array();
  double error_bar_ = 0;
  std::int64_t n_ = 0;
  std::vector<ShardFile::Grid> grids_;
  std::vector<double> clean_, corrupted_;
  std::vector<std::int64_t> cluster_;
};

}  // namespace

void merge_batch(const fs::path& folder, const fs::path& out, const MergeOptions& options) {
  Merging(folder, options).write(out);
}

MergedFile::MergedFile(SealedFile file, bool verified)
    : file_(std::move(file)), verified_(verified) {
  if (file_.kind() != FileKind::batch)
    throw std::invalid_argument("[store] " + file_.origin() + " is a file of kind " +
                                in_quotes(name_of(file_.kind())) + "; needed: a merged batch");
  try {
    about_ = file_.document("/batch");
    n_ = about_.at("n");
    for (const json& grid : about_.at("grids")) {
      grids_.push_back({grid.at("key"), axes_from_json(grid.at("axes"))});
      Shape shape{n_};
      for (const GridAxis& axis : grids_.back().axes) shape.push_back(std::ssize(axis.labels));
      const auto& entry = file_.entries().at("/values/" + grids_.back().key);
      if (entry.shape != shape || entry.dtype != DType::f64)
        throw std::logic_error("/values/" + grids_.back().key + " is " + to_string(entry.shape) +
                               ", its labels " + to_string(shape));
    }
    for (const char* column : {"/index", "/cluster", "/clean", "/corrupted"})
      if (file_.entries().at(column).shape != Shape{n_})
        throw std::logic_error(std::string(column) + " is " +
                               to_string(file_.entries().at(column).shape));
  } catch (const NotVerified&) {
    throw;
  } catch (const std::exception& e) {
    throw NotVerified("[store] " + file_.origin() + ": it is no merged batch: " + e.what());
  }
}

MergedFile MergedFile::open(const fs::path& path) {
  MergedFile file(SealedFile::open(path), true);
  const json& verdict = file.about_.at("verdict");
  if (verdict.value("status", "") != name_of(Status::verified) ||
      verdict.value("n_compared", std::int64_t{0}) <= 0)
    throw NotVerified("[store] " + file.origin() + ": /batch is not a verified batch");
  return file;
}

MergedFile MergedFile::open_unverified(const fs::path& path) {
  return MergedFile(SealedFile::open_unverified(path), false);
}

const ShardFile::Grid& MergedFile::grid(const std::string& name) const {
  std::vector<std::string> keys;
  const ShardFile::Grid* of_site = nullptr;
  std::int64_t number = 0;
  for (const ShardFile::Grid& grid : grids_) {
    if (grid.key == name) return grid;
    std::string site = grid.key.substr(0, grid.key.find("_by_"));
    if (site == name || "head_" + site == name) {
      of_site = &grid;
      ++number;
    }
    keys.push_back(grid.key);
  }
  if (number == 1) return *of_site;
  std::string allowed;
  for (const std::string& key : keys) allowed += (allowed.empty() ? "" : ", ") + key;
  throw std::invalid_argument("[batch] " + origin() + " has no grid " + in_quotes(name) +
                              (number > 1 ? ", but several of that site" : "") +
                              "; there are: " + allowed);
}

Array MergedFile::rows(const std::string& key, std::int64_t begin, std::int64_t end) const {
  return file_.rows("/values/" + grid(key).key, begin, end);
}

json MergedFile::experiments(std::int64_t begin, std::int64_t end) const {
  if (begin < 0 || begin > end || end > n_)
    throw std::out_of_range("[batch] rows " + std::to_string(begin) + " to " + std::to_string(end) +
                            " out of range: there are " + std::to_string(n_));
  json result = json::array();
  for (std::int64_t d = begin / kRowsOfDocument; d * kRowsOfDocument < end; ++d) {
    json rows = file_.document(document_name(d));
    for (std::int64_t i = 0; i < std::ssize(rows); ++i)
      if (std::int64_t at = d * kRowsOfDocument + i; at >= begin && at < end)
        result.push_back(std::move(rows[static_cast<std::size_t>(i)]));
  }
  return result;
}

GridStatistics MergedFile::statistics(const std::string& key) const {
  json statistics = file_.document("/statistics/" + grid(key).key);
  try {
    return grid_statistics_from_json(statistics);
  } catch (const json::exception& e) {
    throw NotVerified("[store] " + origin() + ": /statistics/" + grid(key).key + ": " + e.what());
  }
}

}  // namespace lenscpp
