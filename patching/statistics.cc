#include "patching/statistics.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>

namespace lenscpp {
namespace {

constexpr std::int64_t kMostDraws = 10'000'000;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// SplitMix64 (Steele, Lea and Flood, 2014): one stream a draw, so that draws may run in any order.
class Draws {
 public:
  Draws(std::uint64_t seed, std::uint64_t stream) : state_(seed * kStep + mixed(stream + 1)) {}
  std::uint64_t next() { return mixed(state_ += kStep); }
  std::size_t below(std::size_t n) {  // bias below n / 2^64
    return static_cast<std::size_t>((static_cast<unsigned __int128>(next()) * n) >> 64);
  }

 private:
  static constexpr std::uint64_t kStep = 0x9e3779b97f4a7c15;
  static std::uint64_t mixed(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

// Sums over the experiments of each cluster, [clusters, cells]: all that the statistics need.
struct Sums {
  std::size_t clusters, cells;
  std::vector<double> effect, scaled, range, count;

  Sums(std::size_t n_clusters, std::size_t n_cells) : clusters(n_clusters), cells(n_cells) {
    for (auto* x : {&effect, &scaled, &range, &count}) x->assign(clusters * cells, 0);
  }
};

std::vector<std::size_t> dense_clusters(const Measured& m, std::size_t& n_clusters) {
  std::map<std::int64_t, std::size_t> numbers;
  std::vector<std::size_t> of_row;
  for (std::size_t i = 0; i < m.clean.size(); ++i) {
    auto key = m.cluster.empty() ? static_cast<std::int64_t>(i) : m.cluster[i];
    of_row.push_back(numbers.emplace(key, numbers.size()).first->second);
  }
  n_clusters = numbers.size();
  return of_row;
}

class Computation {
 public:
  Computation(const Measured& m, const StatisticsOptions& o, const ParallelFor& parallel_for)
      : m_(m),
        o_(o),
        parallel_for_(parallel_for),
        n_(m.clean.size()),
        cluster_(dense_clusters(m, n_clusters_)),
        n_cells_(static_cast<std::size_t>(m.values.numel()) / std::max<std::size_t>(n_, 1)),
        sums_(n_clusters_, n_cells_) {}

  GridStatistics run() {
    Shape shape(m_.values.shape().begin() + 1, m_.values.shape().end());
    result_ = {
        .shape = std::move(shape), .cells = std::vector<CellStatistics>(n_cells_), .options = o_};
    add_up();
    for (std::size_t c = 0; c < n_cells_; ++c) describe(c);
    resample();
    test();
    false_discoveries();
    return std::move(result_);
  }

 private:
  double value(std::size_t row, std::size_t cell) const {
    return m_.values.as<double>()[row * n_cells_ + cell];
  }
  double base(std::size_t row) const {
    return m_.direction == Direction::denoise ? m_.corrupted[row] : m_.clean[row];
  }
  double effect(std::size_t row, std::size_t cell) const { return value(row, cell) - base(row); }
  double ratio(std::size_t row, std::size_t cell) const {
    return (value(row, cell) - m_.corrupted[row]) / (m_.clean[row] - m_.corrupted[row]);
  }
  bool has(std::size_t row, std::size_t cell) const { return !std::isnan(value(row, cell)); }

  void add_up() {
    for (std::size_t i = 0; i < n_; ++i)
      for (std::size_t c = 0; c < n_cells_; ++c) {
        if (!has(i, c)) continue;
        std::size_t at = cluster_[i] * n_cells_ + c;
        sums_.effect[at] += effect(i, c);
        sums_.scaled[at] += value(i, c) - m_.corrupted[i];
        sums_.range[at] += m_.clean[i] - m_.corrupted[i];
        sums_.count[at] += 1;
      }
  }

  // sqrt(G / (G - 1) sum over clusters of (sum of residuals)^2) / n: s / sqrt(n) where every
  // cluster is one experiment.
  template <class Of>
  double error_of_mean(std::size_t cell, double mean, std::int64_t n, std::int64_t clusters,
                       const Of& of) const {
    if (clusters < 2) return kNaN;
    std::vector<double> residual(n_clusters_, 0);
    for (std::size_t i = 0; i < n_; ++i)
      if (has(i, cell)) residual[cluster_[i]] += of(i, cell) - mean;
    double squares = std::inner_product(residual.begin(), residual.end(), residual.begin(), 0.0);
    auto g = static_cast<double>(clusters);
    return std::sqrt(g / (g - 1) * squares) / static_cast<double>(n);
  }

  void describe(std::size_t cell) {
    CellStatistics& s = result_.cells[cell];
    double effects = 0, scaled = 0, range = 0, ratios = 0;
    for (std::size_t g = 0; g < n_clusters_; ++g) {
      std::size_t at = g * n_cells_ + cell;
      effects += sums_.effect[at];
      scaled += sums_.scaled[at];
      range += sums_.range[at];
      s.n += static_cast<std::int64_t>(sums_.count[at]);
      s.clusters += sums_.count[at] > 0 ? 1 : 0;
    }
    auto n = static_cast<double>(s.n);
    s.mean = effects / n;
    s.ratio_of_means = scaled / range;
    std::int64_t same = 0;
    for (std::size_t i = 0; i < n_; ++i) {
      if (!has(i, cell)) continue;
      ratios += ratio(i, cell);
      double e = effect(i, cell);
      same += (e > 0 && s.mean > 0) || (e < 0 && s.mean < 0) ? 1 : 0;
    }
    s.mean_of_ratios = ratios / n;
    s.sign_consistency = s.mean == 0 ? kNaN : static_cast<double>(same) / n;
    s.standard_error = error_of_mean(cell, s.mean, s.n, s.clusters,
                                     [this](auto i, auto c) { return effect(i, c); });
    s.ratio_standard_error = error_of_mean(cell, s.mean_of_ratios, s.n, s.clusters,
                                           [this](auto i, auto c) { return ratio(i, c); });
    s.low = s.high = s.ratio_low = s.ratio_high = kNaN;
  }

  std::vector<std::size_t> largest(std::vector<double> means) const {
    std::vector<std::size_t> order(means.size());
    std::iota(order.begin(), order.end(), 0);
    for (double& x : means) x = std::isnan(x) ? 0 : std::abs(x);
    // Cells without any effect are no choice.
    std::erase_if(order, [&](std::size_t c) { return !(means[c] > 0); });
    auto k = std::min(order.size(), static_cast<std::size_t>(o_.top));
    std::ranges::stable_sort(order, std::greater<>(), [&](std::size_t c) { return means[c]; });
    order.resize(k);
    std::ranges::sort(order);
    return order;
  }

  // Percentile intervals over resampled clusters, and how often the largest cells are the same.
  void resample() {
    if (n_clusters_ < 2 || o_.resamples < 1) {
      result_.stability = kNaN;
      return;
    }
    auto draws = static_cast<std::size_t>(o_.resamples);
    std::vector<double> means(draws * n_cells_), ratios(draws * n_cells_);
    parallel_for_(o_.resamples, [&](std::int64_t begin, std::int64_t end) {
      for (auto d = static_cast<std::size_t>(begin); d < static_cast<std::size_t>(end); ++d)
        one_resample(d, means.data() + d * n_cells_, ratios.data() + d * n_cells_);
    });
    std::vector<double> of_all;
    for (const CellStatistics& s : result_.cells) of_all.push_back(s.mean);
    const auto chosen = largest(of_all);
    double jaccard = 0;
    for (std::size_t d = 0; d < draws; ++d) {
      auto first = means.begin() + static_cast<std::ptrdiff_t>(d * n_cells_);
      auto other = largest({first, first + static_cast<std::ptrdiff_t>(n_cells_)});
      std::vector<std::size_t> both;
      std::ranges::set_intersection(chosen, other, std::back_inserter(both));
      auto either = chosen.size() + other.size() - both.size();
      jaccard += either == 0 ? 1 : static_cast<double>(both.size()) / static_cast<double>(either);
    }
    result_.stability = jaccard / static_cast<double>(draws);
    for (std::size_t c = 0; c < n_cells_; ++c) {
      if (result_.cells[c].clusters < 2) continue;
      std::tie(result_.cells[c].low, result_.cells[c].high) = interval(means, c);
      std::tie(result_.cells[c].ratio_low, result_.cells[c].ratio_high) = interval(ratios, c);
    }
  }

  void one_resample(std::size_t draw, double* means, double* ratios) const {
    Draws random(o_.seed, 2 * draw);
    std::vector<double> effect(n_cells_), scaled(n_cells_), range(n_cells_), count(n_cells_);
    for (std::size_t k = 0; k < n_clusters_; ++k) {
      std::size_t row = random.below(n_clusters_) * n_cells_;
      for (std::size_t c = 0; c < n_cells_; ++c) {
        effect[c] += sums_.effect[row + c];
        scaled[c] += sums_.scaled[row + c];
        range[c] += sums_.range[row + c];
        count[c] += sums_.count[row + c];
      }
    }
    for (std::size_t c = 0; c < n_cells_; ++c) {
      means[c] = effect[c] / count[c];
      ratios[c] = scaled[c] / range[c];
    }
  }

  // Of a column, draws without any experiment of that cell left out.
  std::pair<double, double> interval(const std::vector<double>& draws, std::size_t cell) const {
    std::vector<double> column;
    for (std::size_t at = cell; at < draws.size(); at += n_cells_)
      if (std::isfinite(draws[at])) column.push_back(draws[at]);
    if (column.empty()) return {kNaN, kNaN};
    std::ranges::sort(column);
    auto quantile = [&](double share) {
      double place = share * static_cast<double>(column.size() - 1);
      auto below = static_cast<std::size_t>(place);
      auto above = std::min(below + 1, column.size() - 1);
      double part = place - static_cast<double>(below);
      return column[below] * (1 - part) + column[above] * part;
    };
    return {quantile((1 - o_.level) / 2), quantile((1 + o_.level) / 2)};
  }

  // Without an effect each cluster's sum is as likely to be its negative. All assignments of signs
  // where there are no more than asked for, else random ones, of which the data's own is one.
  void test() {
    bool all = n_clusters_ < 40 && (std::int64_t{1} << n_clusters_) <= o_.permutations;
    std::int64_t signs = all ? std::int64_t{1} << n_clusters_ : o_.permutations;
    std::vector<std::int64_t> as_large(n_cells_, 0);
    own_.assign(n_cells_, 0);
    sizes_.assign(n_cells_, 0);
    for (std::size_t at = 0; at < sums_.effect.size(); ++at) {
      own_[at % n_cells_] += sums_.effect[at];
      sizes_[at % n_cells_] += std::abs(sums_.effect[at]);
    }
    std::mutex adding;
    parallel_for_(signs, [&](std::int64_t begin, std::int64_t end) {
      std::vector<std::int64_t> here(n_cells_, 0);
      for (std::int64_t k = begin; k < end; ++k) one_permutation(k, all, here);
      std::lock_guard lock(adding);
      for (std::size_t c = 0; c < n_cells_; ++c) as_large[c] += here[c];
    });
    for (std::size_t c = 0; c < n_cells_; ++c) {
      auto extra = all ? 0.0 : 1.0;
      result_.cells[c].p =
          (static_cast<double>(as_large[c]) + extra) / (static_cast<double>(signs) + extra);
    }
  }

  void one_permutation(std::int64_t number, bool all, std::vector<std::int64_t>& as_large) const {
    Draws random(o_.seed, 2 * static_cast<std::uint64_t>(number) + 1);
    std::vector<double> permuted(n_cells_, 0);
    std::uint64_t bits = static_cast<std::uint64_t>(number);
    for (std::size_t g = 0; g < n_clusters_; ++g) {
      if (!all && g % 64 == 0) bits = random.next();
      double sign = (bits >> (g % 64)) & 1 ? -1 : 1;
      const double* row = sums_.effect.data() + g * n_cells_;
      for (std::size_t c = 0; c < n_cells_; ++c) permuted[c] += sign * row[c];
    }
    // Equal sums in another order of signs must not fall short by rounding.
    for (std::size_t c = 0; c < n_cells_; ++c)
      as_large[c] += std::abs(permuted[c]) >= std::abs(own_[c]) - 1e-12 * sizes_[c] ? 1 : 0;
  }

  // Benjamini and Hochberg (1995): q = min over larger p of p m / rank.
  void false_discoveries() {
    std::vector<std::size_t> order;
    for (std::size_t c = 0; c < n_cells_; ++c)
      if (result_.cells[c].n > 0) order.push_back(c);
    std::ranges::stable_sort(order, {}, [&](std::size_t c) { return result_.cells[c].p; });
    double q = 1;
    for (std::size_t rank = order.size(); rank-- > 0;) {
      CellStatistics& s = result_.cells[order[rank]];
      q = std::min(q, s.p * static_cast<double>(order.size()) / static_cast<double>(rank + 1));
      s.q = q;
    }
    std::vector<std::int64_t> found;
    for (std::size_t c = 0; c < n_cells_; ++c)
      if (result_.cells[c].n > 0 && result_.cells[c].q <= o_.false_discovery_rate &&
          std::abs(result_.cells[c].mean) > o_.error_bar)
        found.push_back(static_cast<std::int64_t>(c));
    std::ranges::stable_sort(found, std::greater<>(), [&](std::int64_t c) {
      return std::abs(result_.cells[static_cast<std::size_t>(c)].mean);
    });
    result_.significant = std::ssize(found);
    found.resize(std::min(found.size(), static_cast<std::size_t>(o_.top)));
    result_.top = std::move(found);
  }

  const Measured& m_;
  const StatisticsOptions& o_;
  const ParallelFor& parallel_for_;
  std::size_t n_, n_clusters_ = 0;
  std::vector<std::size_t> cluster_;
  std::size_t n_cells_;
  Sums sums_;
  std::vector<double> own_ = {}, sizes_ = {};  // sums of the effects, and of their sizes
  GridStatistics result_;
};

using Member = double CellStatistics::*;
constexpr std::array<std::pair<const char*, Member>, 12> kMembers = {{
    {"mean", &CellStatistics::mean},
    {"standard_error", &CellStatistics::standard_error},
    {"low", &CellStatistics::low},
    {"high", &CellStatistics::high},
    {"ratio_of_means", &CellStatistics::ratio_of_means},
    {"ratio_low", &CellStatistics::ratio_low},
    {"ratio_high", &CellStatistics::ratio_high},
    {"mean_of_ratios", &CellStatistics::mean_of_ratios},
    {"ratio_standard_error", &CellStatistics::ratio_standard_error},
    {"sign_consistency", &CellStatistics::sign_consistency},
    {"p", &CellStatistics::p},
    {"q", &CellStatistics::q},
}};

}  // namespace

void check(const StatisticsOptions& o) {
  auto need = [](bool holds, const std::string& option, double value, const char* allowed) {
    if (!holds)
      throw std::invalid_argument("[statistics] " + option + " " + nlohmann::json(value).dump() +
                                  "; allowed: " + allowed);
  };
  auto count = [&](const char* option, std::int64_t value, std::int64_t least) {
    need(value >= least && value <= kMostDraws, option, static_cast<double>(value),
         least == 0 ? "0 to 10000000" : "1 to 10000000");
  };
  count("resamples", o.resamples, 0);
  count("permutations", o.permutations, 1);
  count("top", o.top, 1);
  need(o.level > 0 && o.level < 1, "level", o.level, "between 0 and 1");
  need(o.false_discovery_rate > 0 && o.false_discovery_rate < 1, "false_discovery_rate",
       o.false_discovery_rate, "between 0 and 1");
  need(o.error_bar >= 0, "error_bar", o.error_bar, "0 and more");
}

GridStatistics statistics_of(const Measured& m, const StatisticsOptions& options,
                             const ParallelFor& parallel_for) {
  auto n = static_cast<std::int64_t>(m.clean.size());
  if (n == 0 || m.values.rank() < 1 || m.values.size(0) != n || std::ssize(m.corrupted) != n ||
      m.values.dtype() != DType::f64 || (!m.cluster.empty() && std::ssize(m.cluster) != n))
    throw std::invalid_argument(
        "[statistics] values " + to_string(m.values.shape()) + ", clean " + std::to_string(n) +
        ", corrupted " + std::to_string(m.corrupted.size()) + ", clusters " +
        std::to_string(m.cluster.size()) + "; needed: a row of each an experiment, at least one");
  check(options);
  return Computation(m, options, parallel_for).run();
}

nlohmann::json to_json(const GridStatistics& s) {
  nlohmann::json json{{"shape", s.shape},
                      {"top", s.top},
                      {"significant", s.significant},
                      {"stability", s.stability},
                      {"options",
                       {{"resamples", s.options.resamples},
                        {"permutations", s.options.permutations},
                        {"level", s.options.level},
                        {"false_discovery_rate", s.options.false_discovery_rate},
                        {"top", s.options.top},
                        {"error_bar", s.options.error_bar},
                        {"seed", s.options.seed}}}};
  for (const char* list : {"n", "clusters"}) json[list] = nlohmann::json::array();
  for (const CellStatistics& cell : s.cells) {
    json["n"].push_back(cell.n);
    json["clusters"].push_back(cell.clusters);
    for (auto [name, member] : kMembers) json[name].push_back(cell.*member);  // null where NaN
  }
  return json;
}

GridStatistics grid_statistics_from_json(const nlohmann::json& json) {
  const nlohmann::json& o = json.at("options");
  auto number = [](const nlohmann::json& x) { return x.is_null() ? kNaN : x.get<double>(); };
  GridStatistics s{.shape = json.at("shape").get<Shape>(),
                   .cells = {},
                   .top = json.at("top"),
                   .significant = json.at("significant"),
                   .stability = number(json.at("stability")),
                   .options = {.resamples = o.at("resamples"),
                               .permutations = o.at("permutations"),
                               .level = o.at("level"),
                               .false_discovery_rate = o.at("false_discovery_rate"),
                               .top = o.at("top"),
                               .error_bar = o.at("error_bar"),
                               .seed = o.at("seed")}};
  s.cells.resize(static_cast<std::size_t>(numel(s.shape)));
  for (std::size_t c = 0; c < s.cells.size(); ++c) {
    s.cells[c].n = json.at("n").at(c);
    s.cells[c].clusters = json.at("clusters").at(c);
    for (auto [name, member] : kMembers) s.cells[c].*member = number(json.at(name).at(c));
  }
  return s;
}

}  // namespace lenscpp
