// The judgement of harm.
#include "verify/device/harm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
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

// Where nothing is allowed, any difference is infinitely too much.
double over(double difference, double allowed) {
  if (difference == 0) return 0;
  return allowed > 0 ? difference / allowed : kInfinity;
}

Array smaller_or_larger(const Array& a, const Array& b, bool larger) {
  if (same_bits(a, b)) return a;
  MutableArray result(a.shape(), a.dtype());
  std::int64_t begin = 0;
  in_blocks(a, b, [&](auto x, auto y) {
    for (std::size_t i = 0; i < x.size(); ++i)
      x[i] = larger ? std::max(x[i], y[i]) : std::min(x[i], y[i]);
    result.store(begin, x);
    begin += static_cast<std::int64_t>(x.size());
  });
  return std::move(result).freeze();
}

// The largest difference of one element over what honest runs may differ by there.
double times_honest(const Array& found, const Array& clean, double spread, bool may_round) {
  if (found.shape() != clean.shape() || found.dtype() != clean.dtype()) return kInfinity;
  double worst = 0;
  in_blocks(found, clean, [&](auto x, auto y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      double d = difference(x[i], y[i]);
      if (d == 0) continue;
      if (!std::isfinite(d)) {
        worst = kInfinity;
        return;
      }
      double step = may_round ? unit_in_last_place(y[i], clean.dtype()) : 0;
      worst = std::max(worst, over(d, std::max(spread, step)));
    }
  });
  return worst;
}

// [prompt, vocabulary]: logits at the last position, or a classifier's of labels; empty when the
// run has none.
std::vector<std::vector<double>> last_logits(const std::vector<std::pair<TensorId, Array>>& run) {
  if (run.empty()) return {};
  bool labels = run.back().first.site == Site::class_logits;
  if (!labels && run.back().first.site < Site::unembed_out) return {};
  const Array& logits = run.back().second;
  std::vector<std::vector<double>> rows;
  std::int64_t pos = labels ? 1 : logits.size(1), vocab = logits.size(-1);
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

double unit_in_last_place(double value, DType dtype) {
  if (!std::isfinite(value) || dtype == DType::i64) return 0;
  double magnitude = std::max(std::abs(value), smallest_normal(dtype));
  return 2 * unit_roundoff(dtype) * std::ldexp(1.0, std::ilogb(magnitude));
}

HarmJudge::HarmJudge(const Recording& clean) : clean_(clean.tensors()) {
  for (const auto& [id, value] : clean_) low_.push_back(value);
  high_ = low_;
  for (const auto& logits : last_logits(clean_)) {
    std::vector<std::int64_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    auto likelier = [&](std::int64_t a, std::int64_t b) {
      return logits[static_cast<std::size_t>(a)] > logits[static_cast<std::size_t>(b)];
    };
    std::ranges::partial_sort(order, order.begin() + std::min<std::ptrdiff_t>(2, std::ssize(order)),
                              likelier);
    likeliest_.emplace_back(order.front(), order[order.size() > 1 ? 1 : 0]);
  }
  for (const Choice& choice : metric_of(clean_)) low_metric_.push_back(choice.difference);
  high_metric_ = low_metric_;
}

std::vector<HarmJudge::Choice> HarmJudge::metric_of(const Run& run) const {
  std::vector<Choice> metric;
  auto logits = last_logits(run);
  for (std::size_t b = 0; b < std::min(logits.size(), likeliest_.size()); ++b) {
    auto [first, second] = likeliest_[b];
    double x = logits[b].at(static_cast<std::size_t>(first)),
           y = logits[b].at(static_cast<std::size_t>(second));
    DType dtype = run.back().second.dtype();
    metric.push_back({x - y, unit_in_last_place(x, dtype) + unit_in_last_place(y, dtype)});
  }
  return metric;
}

void HarmJudge::add_honest(const Run& run) {
  auto same_tensor = [](const auto& a, const auto& b) {
    return a.first == b.first && a.second.shape() == b.second.shape() &&
           a.second.dtype() == b.second.dtype();
  };
  if (!std::ranges::equal(run, clean_, same_tensor))
    throw std::invalid_argument("[harm] an honest run has other tensors than the clean one");
  for (std::size_t i = 0; i < run.size(); ++i)
    if (!std::isfinite(largest_difference(run[i].second, clean_[i].second)))
      throw std::invalid_argument(
          "[harm] an honest run is not finite where the clean one is, or the "
          "other way round: " +
          to_string(run[i].first));
  for (std::size_t i = 0; i < run.size(); ++i) {
    low_[i] = smaller_or_larger(low_[i], run[i].second, false);
    high_[i] = smaller_or_larger(high_[i], run[i].second, true);
    if (!same_bits(low_[i], high_[i]) && i < first_spread_.value_or(run.size())) first_spread_ = i;
  }
  std::vector<Choice> metric = metric_of(run);
  for (std::size_t b = 0; b < metric.size(); ++b) {
    low_metric_[b] = std::min(low_metric_[b], metric[b].difference);
    high_metric_[b] = std::max(high_metric_[b], metric[b].difference);
  }
}

double HarmJudge::spread(std::size_t i) const { return largest_difference(high_[i], low_[i]); }

std::pair<double, std::string> HarmJudge::relative_spread() const {
  std::pair<double, std::string> widest;
  for (std::size_t i = 0; i < clean_.size(); ++i) {
    double found = over(spread(i), largest_magnitude(clean_[i].second));
    if (found > widest.first) widest = {found, to_string(clean_[i].first)};
  }
  return widest;
}

bool HarmJudge::can_differ(std::size_t i) const {
  return first_spread_.has_value() && i >= *first_spread_;
}

Judgement HarmJudge::judge(const Recording& run) const {
  const Run& found = run.tensors();
  Judgement j;
  auto see = [&](double times, const std::string& where) {
    if (!(times <= kHarmful)) j.harm = Harm::harmful;
    if (times > j.times) j.times = times, j.worst = where;
  };
  for (std::size_t i = 0; i < clean_.size(); ++i) {
    const auto& [id, value] = clean_[i];
    bool there = i < found.size() && found[i].first == id;
    if (there && same_bits(found[i].second, value)) continue;
    if (!j.first) {
      double magnitude = largest_magnitude(value);
      double d = there ? largest_difference(found[i].second, value) : kInfinity;
      j.first = id, j.relative = magnitude > 0 ? d / magnitude : d;
      j.harm = Harm::between;
    }
    see(there ? times_honest(found[i].second, value, spread(i), can_differ(i)) : kInfinity,
        to_string(id));
  }
  if (!j.first) return j;
  std::vector<Choice> metric = metric_of(found), before = metric_of(clean_);
  for (std::size_t b = 0; b < before.size(); ++b) {
    double allowed = std::max(high_metric_[b] - low_metric_[b], before[b].step);
    see(b < metric.size() ? over(difference(metric[b].difference, before[b].difference), allowed)
                          : kInfinity,
        "logit difference");
  }
  return j;
}

}  // namespace lenscpp
