// The judgement of harm.
#include "verify/device/harm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace lenscpp {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kBlock = 512;

bool same_bits(const Array& a, const Array& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         (a.empty() || std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0);
}

double difference(double x, double y) {
  if (x == y || (std::isnan(x) && std::isnan(y))) return 0;
  double d = std::abs(x - y);
  return std::isnan(d) ? kInfinity : d;
}

// Calls visit(first, second) with blocks of both arrays' elements as doubles.
template <class Visit>
void in_blocks(const Array& a, const Array& b, const Visit& visit) {
  std::array<double, kBlock> x, y;
  for (std::int64_t i = 0; i < a.numel(); i += kBlock) {
    auto n = static_cast<std::size_t>(std::min(kBlock, a.numel() - i));
    std::span<double> left(x.data(), n), right(y.data(), n);
    a.widen(i, left);
    b.widen(i, right);
    visit(left, right);
  }
}

double largest_magnitude(const Array& a) {
  double largest = 0;
  in_blocks(a, a, [&](auto x, auto) {
    for (double value : x)
      if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
  });
  return largest;
}

// How often the honest difference; nothing is allowed where honest runs do not differ at all.
double over(double difference, double spread) {
  if (difference == 0) return 0;
  return spread > 0 ? difference / spread : kInfinity;
}

// [prompt, vocabulary]: logits at the last position; empty when the run has none.
std::vector<std::vector<double>> last_logits(const std::vector<std::pair<TensorId, Array>>& run) {
  if (run.empty() || run.back().first.site != Site::unembed_out) return {};
  const Array& logits = run.back().second;
  std::vector<std::vector<double>> rows;
  std::int64_t pos = logits.size(1), vocab = logits.size(2);
  for (std::int64_t b = 0; b < logits.size(0); ++b) {
    rows.emplace_back(static_cast<std::size_t>(vocab));
    logits.widen(((b + 1) * pos - 1) * vocab, rows.back());
  }
  return rows;
}

}  // namespace

std::string_view name_of(Harm harm) {
  switch (harm) {
    case Harm::harmless:
      return "harmless";
    case Harm::between:
      return "between";
    case Harm::harmful:
      return "harmful";
  }
  throw std::logic_error("[harm] not a Harm");
}

double largest_difference(const Array& a, const Array& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return kInfinity;
  if (same_bits(a, b)) return 0;
  double largest = 0;
  in_blocks(a, b, [&](auto x, auto y) {
    for (std::size_t i = 0; i < x.size(); ++i) largest = std::max(largest, difference(x[i], y[i]));
  });
  return largest;
}

HarmJudge::HarmJudge(const Recording& clean) : honest_{clean.tensors()} {
  spread_.resize(honest_[0].size());
  for (const auto& logits : last_logits(honest_[0])) {
    std::vector<std::int64_t> order(logits.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
    auto likelier = [&](std::int64_t a, std::int64_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    };
    std::ranges::partial_sort(order, order.begin() + std::min<std::ptrdiff_t>(2, std::ssize(order)),
                              likelier);
    likeliest_.emplace_back(order.front(), order[order.size() > 1 ? 1 : 0]);
  }
}

std::vector<double> HarmJudge::metric_of(const Run& run) const {
  std::vector<double> metric;
  auto logits = last_logits(run);
  for (std::size_t b = 0; b < std::min(logits.size(), likeliest_.size()); ++b) {
    auto at = [&](std::int64_t token) {
      auto i = static_cast<std::size_t>(token);
      return i < logits[b].size() ? logits[b][i] : kInfinity;
    };
    metric.push_back(at(likeliest_[b].first) - at(likeliest_[b].second));
  }
  return metric;
}

void HarmJudge::add_honest(Run run) {
  auto same_tensor = [](const auto& a, const auto& b) {
    return a.first == b.first && a.second.shape() == b.second.shape() &&
           a.second.dtype() == b.second.dtype();
  };
  if (!std::ranges::equal(run, honest_[0], same_tensor))
    throw std::invalid_argument("[harm] an honest run has other tensors than the clean one");
  std::vector<double> metric = metric_of(run);
  for (const Run& other : honest_) {
    for (std::size_t i = 0; i < run.size(); ++i)
      spread_[i] = std::max(spread_[i], largest_difference(run[i].second, other[i].second));
    std::vector<double> others = metric_of(other);
    for (std::size_t b = 0; b < metric.size(); ++b)
      metric_spread_ = std::max(metric_spread_, difference(metric[b], others[b]));
  }
  honest_.push_back(std::move(run));
}

Judgement HarmJudge::judge(const Recording& run) const {
  const Run &found = run.tensors(), &clean = honest_[0];
  Judgement j;
  auto see = [&](double difference, double spread, const std::string& where) {
    if (!(difference <= kHarmful * spread)) j.harm = Harm::harmful;
    double times = over(difference, spread);
    if (times > j.times) j.times = times, j.worst = where;
  };
  for (std::size_t i = 0; i < clean.size(); ++i) {
    const auto& [id, value] = clean[i];
    bool there = i < found.size() && found[i].first == id;
    if (there && same_bits(found[i].second, value)) continue;
    double d = there ? largest_difference(found[i].second, value) : kInfinity;
    if (!j.first) {
      double magnitude = largest_magnitude(value);
      j.first = id, j.change = d, j.relative = magnitude > 0 ? d / magnitude : d;
      j.harm = Harm::between;
    }
    see(d, spread_[i], to_string(id));
  }
  std::vector<double> metric = metric_of(found), before = metric_of(clean);
  for (std::size_t b = 0; b < before.size(); ++b)
    see(b < metric.size() ? difference(metric[b], before[b]) : kInfinity, metric_spread_,
        "logit difference");
  return j;
}

}  // namespace lenscpp
