// The exact check, its evidence, and the float64 run.
#include "verify/reference/exact.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <mutex>
#include <optional>
#include <stdexcept>

#include "verify/reference/ops.h"

namespace lenscpp {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What one element's comparison found: 0 is equal, up to 1 is within tolerance. The order of the
// tests matters: NaN first (it compares false with everything), then infinities, then numbers.
double error_ratio(double device, double reference, double tolerance, const Contract& c) {
  if (std::isnan(device) || std::isnan(reference)) return kInfinity;
  if (device == reference) return 0;
  if (!std::isfinite(tolerance)) return kInfinity;  // a bound that allows everything checks nothing
  if (std::isinf(device)) {
    // A store that overflows makes the infinity of the reference's sign, and that is honest.
    bool overflows = std::isinf(round_to(c.stored, std::abs(reference) + tolerance));
    return overflows && !std::isinf(reference) && std::signbit(device) == std::signbit(reference)
               ? 1
               : kInfinity;
  }
  if (std::isinf(reference)) return kInfinity;
  // The rounded quotient exceeds 1 exactly where the error exceeds the tolerance; x / 0 is
  // infinite.
  return std::abs(device - reference) / tolerance;
}

// Sums over the elements of one block or of all of them.
struct Tally {
  std::int64_t compared = 0, failed = 0, worst_index = 0;
  double worst = -1, device = 0, reference = 0, error_square = 0, expected_square = 0;

  void merge(const Tally& other) {
    compared += other.compared;
    failed += other.failed;
    error_square += other.error_square;
    expected_square += other.expected_square;
    // Of equals the first, so that the result does not depend on the threads.
    if (other.worst > worst || (other.worst == worst && other.worst_index < worst_index)) {
      worst = other.worst;
      worst_index = other.worst_index;
      device = other.device;
      reference = other.reference;
    }
  }
};

// A run of the output beside what it should be: as many elements as stay in L1.
struct Run {
  static constexpr std::int64_t kLength = 512;

  // Errors, infinite where an element decides something: where it may be beyond its tolerance, or
  // worse than `worst`. Errs towards suspicion and has no branches, so that it vectorises;
  // comparisons with NaN are false. Returns the sum of the squares: infinite where anything is
  // suspect.
  double find_errors(const double* reference, double worst) {
    // Below this share of its tolerance an error is below `worst` however the division is rounded.
    const double limit = std::min(1.0, worst) * (1 - 0x1p-50);
    for (std::int64_t j = 0; j < length; ++j) {
      double difference = std::abs(device[j] - reference[j]);
      double e = device[j] == reference[j] ? 0 : difference, least = limit * tolerance[j];
      double allowed = tolerance[j] < kInfinity ? least : -1;
      error[j] = e <= allowed ? e : kInfinity;
    }
    return error_square();
  }
  double error_square() const {
    return Eigen::Map<const Eigen::VectorXd>(error.data(), length).squaredNorm();
  }

  std::int64_t length = 0;
  alignas(64) std::array<double, kLength> device, tolerance, error, widening;
};

// Adds one block to `t`. `on_failure(flat index, device, reference)` is called for every element
// beyond its tolerance.
template <class OnFailure>
class Comparison {
 public:
  Comparison(const Array& output, const Array& extra, const Contract& c, Tally& t,
             const OnFailure& on_failure)
      : output_(output), extra_(extra), c_(c), t_(t), on_failure_(on_failure) {}

  void add(const Block& b, const Expectation& e) {
    t_.expected_square += e.expected_square;
    bool gaps = b.row_stride != b.cols && b.rows > 1;
    std::int64_t lines = gaps ? b.rows : 1, length = gaps ? b.cols : b.rows * b.cols;
    for (std::int64_t line = 0; line < lines; ++line)
      for (std::int64_t j = 0; j < length; j += Run::kLength) {
        run_.length = std::min(Run::kLength, length - j);
        add_run(b.offset + line * b.row_stride + j, line * length + j, b.cols, e);
      }
  }

 private:
  // The elements from `begin` on, which are those from `first` on of the expectation.
  void add_run(std::int64_t begin, std::int64_t first, std::int64_t cols, const Expectation& e) {
    auto n = static_cast<std::size_t>(run_.length);
    const double *reference = e.value.data() + first, *slack = e.slack.data() + first;
    output_.widen(begin, {run_.device.data(), n});
    row_tolerances(c_, {reference, n}, {slack, n}, {run_.tolerance.data(), n});
    if (!extra_.empty()) {
      extra_.widen(begin, {run_.widening.data(), n});
      for (std::size_t j = 0; j < n; ++j) run_.tolerance[j] += run_.widening[j];
    }
    double square = run_.find_errors(reference, t_.worst);
    t_.compared += run_.length;
    if (square < kInfinity) {
      t_.error_square += square;
      return;
    }
    for (std::int64_t j = 0; j < run_.length; ++j) {
      if (run_.error[j] < kInfinity) continue;
      judge(begin + j, run_.device[j], reference[j], run_.tolerance[j], [&] {
        std::int64_t i = first + j;
        double widening = extra_.empty() ? 0 : run_.widening[j];
        return e.refine ? tolerance(c_, reference[j], e.refine(i / cols, i % cols)) + widening
                        : run_.tolerance[j];
      });
      double error = std::abs(run_.device[j] - reference[j]);
      run_.error[j] = error < kInfinity ? error : 0;  // for the RMS test
    }
    t_.error_square += run_.error_square();
  }

  template <class Refine>
  void judge(std::int64_t index, double device, double reference, double allowed,
             const Refine& refined) {
    double ratio = error_ratio(device, reference, allowed, c_);
    // A cheap bound is refined only where it decides: for a failure, or for a new worst element.
    if (ratio > std::min(1.0, std::max(t_.worst, 0.0)))
      ratio = error_ratio(device, reference, refined(), c_);
    if (!(ratio <= 1)) {
      t_.failed += 1;
      on_failure_(index, device, reference);
    }
    if (ratio > t_.worst) {
      t_.worst = ratio;
      t_.worst_index = index;
      t_.device = device;
      t_.reference = reference;
    }
  }

  const Array &output_, &extra_;
  const Contract& c_;
  Tally& t_;
  const OnFailure& on_failure_;
  Run run_;
};

// Waking threads costs more than a small link is worth.
const ParallelFor& threads_for(const Link& link, std::int64_t elements,
                               const ParallelFor& parallel) {
  static const ParallelFor serial = serial_for;
  constexpr std::int64_t kWorthThreads = 1 << 20;  // multiply-adds: about 50 microseconds
  std::int64_t terms =
      link.op == Op::linear || link.op == Op::head_linear || link.op == Op::head_result
          ? link.weight->in
          : 16;
  return elements * terms < kWorthThreads ? serial : parallel;
}

}  // namespace

std::string to_string(const Point& point) {
  return point.name.empty() ? to_string(point.id) : point.name;
}

Point check_exact(const Link& link, const std::vector<Array>& inputs, const Array& output,
                  const Contract& contract, const ParallelFor& parallel, const Array& extra) {
  auto kernel = make_kernel(link, inputs, output.shape(), contract);
  auto blocks = kernel->blocks();
  Tally total;
  std::mutex mutex;
  threads_for(link, output.numel(), parallel)(
      static_cast<std::int64_t>(blocks.size()), [&](std::int64_t begin, std::int64_t end) {
        Tally mine;
        auto ignore = [](auto...) {};
        Comparison comparison(output, extra, contract, mine, ignore);
        for (std::int64_t i = begin; i < end; ++i)
          if (kernel->holds(blocks[i], output))
            mine.compared += blocks[i].rows * blocks[i].cols;
          else
            comparison.add(blocks[i], kernel->expect(blocks[i]));
        std::lock_guard lock(mutex);
        total.merge(mine);
      });
  Point point{.id = link.output,
              .op = link.op,
              .compared = total.compared,
              .failed = total.failed,
              .worst_ratio = std::max(total.worst, 0.0),
              .rms_ratio = total.expected_square > 0
                               ? std::sqrt(total.error_square / total.expected_square)
                               : 0,
              .worst_index = total.worst_index,
              .device_value = total.device,
              .reference_value = total.reference,
              .shape = output.shape(),
              .why = {},
              .hint = {}};
  if (point.compared != output.numel())
    point.why = "compared " + std::to_string(point.compared) + " of " +
                std::to_string(output.numel()) + " elements";
  if (!point.passed()) point.hint = diagnose(link, inputs, output, contract, point, extra);
  return point;
}

Array tolerances(const Link& link, const std::vector<Array>& inputs, const Shape& output,
                 const Contract& contract) {
  auto kernel = make_kernel(link, inputs, output, contract);
  MutableArray result(output, DType::f64);
  for (const Block& b : kernel->blocks()) {
    Expectation e = kernel->expect(b);
    for (std::int64_t r = 0; r < b.rows; ++r)
      for (std::int64_t j = 0; j < b.cols; ++j) {
        double slack = e.refine ? e.refine(r, j) : e.slack(r, j);
        result.set(b.offset + r * b.row_stride + j, tolerance(contract, e.value(r, j), slack));
      }
  }
  return std::move(result).freeze();
}

Array compute(const Link& link, const std::vector<Array>& inputs, const Shape& output,
              const ParallelFor& parallel) {
  auto kernel = make_kernel(link, inputs, output, contract_of(link.output.site, DType::f64));
  auto blocks = kernel->blocks();
  MutableArray result(output, DType::f64);
  threads_for(link, numel(output), parallel)(
      static_cast<std::int64_t>(blocks.size()), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          Mat value = kernel->value(blocks[i]);
          for (std::int64_t r = 0; r < blocks[i].rows; ++r)
            result.store(
                blocks[i].offset + r * blocks[i].row_stride,
                {value.data() + r * blocks[i].cols, static_cast<std::size_t>(blocks[i].cols)});
        }
      });
  return std::move(result).freeze();
}

namespace {

// Which indices of each axis hold failures, and what the failing elements have in common.
struct Pattern {
  std::int64_t count = 0, not_finite = 0, zeros = 0, unmasked = 0, hidden = 0;
  std::vector<std::vector<std::int64_t>> per_axis;  // failures at each index of each axis
  // Sums over the failing elements that are finite; along: of error times reference.
  double device_square = 0, reference_square = 0, error_square = 0, along = 0;
};

Pattern failure_pattern(const Link& link, const std::vector<Array>& inputs, const Array& output,
                        const Contract& c, const Array& extra) {
  Pattern p;
  for (std::int64_t extent : output.shape())
    p.per_axis.emplace_back(static_cast<std::size_t>(extent), 0);
  auto kernel = make_kernel(link, inputs, output.shape(), c);
  Tally ignored;
  auto count = [&](std::int64_t index, double device, double reference) {
    p.count += 1;
    p.not_finite += !std::isfinite(device);
    p.zeros += device == 0;
    p.unmasked += std::isfinite(device) && reference == -kInfinity;
    p.hidden += device == -kInfinity && std::isfinite(reference);
    if (std::isfinite(device) && std::isfinite(reference)) {
      double error = device - reference;
      p.device_square += device * device;
      p.reference_square += reference * reference;
      p.error_square += error * error;
      p.along += error * reference;
    }
    for (int d = output.rank() - 1; d >= 0; --d) {
      p.per_axis[d][index % output.size(d)] += 1;
      index /= output.size(d);
    }
  };
  Comparison comparison(output, extra, c, ignored, count);
  for (const Block& b : kernel->blocks()) comparison.add(b, kernel->expect(b));
  return p;
}

std::string range_of(const std::vector<std::int64_t>& counts, std::int64_t& distinct) {
  std::int64_t first = -1, last = -1;
  distinct = 0;
  for (std::size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > 0) {
      if (first < 0) first = static_cast<std::int64_t>(i);
      last = static_cast<std::int64_t>(i);
      distinct += 1;
    }
  auto end = static_cast<std::int64_t>(counts.size()) - 1;
  if (distinct == 1) return std::to_string(first);
  if (distinct == end + 1) return "";
  if (distinct == last - first + 1 && last == end) return "from " + std::to_string(first) + " on";
  if (distinct == last - first + 1) return std::to_string(first) + " to " + std::to_string(last);
  return "(" + std::to_string(distinct) + " of " + std::to_string(end + 1) + ")";
}

// "batch 0, pos from 8 on, head 2": the axes on which failures do not fill everything.
std::string where(const Link& link, const Array& output, const Pattern& p) {
  std::string text;
  auto axes = info(link.output.site).axes;
  for (int d = 0; d < output.rank(); ++d) {
    if (output.size(d) == 1) continue;
    std::int64_t distinct;
    std::string range = range_of(p.per_axis[d], distinct);
    if (!range.empty())
      text += (text.empty() ? "" : ", ") + std::string(name_of(axes[d])) + " " + range;
  }
  return text;
}

// device = factor * reference, but for a tenth of the error and the rounding of the store.
std::optional<double> scaled_by(const Pattern& p, const Contract& c) {
  if (p.count < 4 || p.reference_square == 0) return {};
  double left = p.error_square - p.along * p.along / p.reference_square;
  double rounding = c.u_s * c.u_s * p.reference_square;
  if (!(left < std::min(0.5 * p.error_square, 0.01 * p.error_square + rounding))) return {};
  return 1 + p.along / p.reference_square;
}

std::string short_number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.6g", value);
  return text.data();
}

// Whether the output is the reference with rows of one axis moved: whether output[to] is
// reference[from] for the given pairs, but for a tenth of the difference between output[to] and
// reference[to].
bool moved(const Array& output, const Array& reference, int axis,
           const std::vector<std::pair<std::int64_t, std::int64_t>>& to_from) {
  std::int64_t extent = output.size(axis), inner = 1, outer = 1;
  for (int d = 0; d < axis; ++d) outer *= output.size(d);
  for (int d = axis + 1; d < output.rank(); ++d) inner *= output.size(d);
  auto square = [](double a, double b) {
    return a == b                 ? 0
           : std::isfinite(a - b) ? (a - b) * (a - b)
                                  : kInfinity;  // infinities must match
  };
  double unmoved_square = 0, moved_square = 0;
  for (std::int64_t o = 0; o < outer; ++o)
    for (auto [to, from] : to_from)
      for (std::int64_t i = 0; i < inner; ++i) {
        double device = output[(o * extent + to) * inner + i];
        unmoved_square += square(device, reference[(o * extent + to) * inner + i]);
        moved_square += square(device, reference[(o * extent + from) * inner + i]);
      }
  return moved_square < kInfinity && unmoved_square > 0 && !(moved_square > 0.01 * unmoved_square);
}

// "heads 1 and 2 swapped", "experts 0 and 3 swapped", "rows shifted by 1", or nothing.
std::string movement(const Link& link, const Array& output, const Array& reference,
                     const Pattern& p) {
  auto axes = info(link.output.site).axes;
  for (int d = 0; d < output.rank(); ++d) {
    std::int64_t extent = output.size(d);
    if (axes[d] == Axis::head || axes[d] == Axis::kv_head || axes[d] == Axis::expert) {
      std::vector<std::int64_t> wrong;
      for (std::int64_t h = 0; h < extent; ++h)
        if (p.per_axis[d][h] > 0) wrong.push_back(h);
      if (wrong.size() == 2 &&
          moved(output, reference, d, {{wrong[0], wrong[1]}, {wrong[1], wrong[0]}}))
        return (axes[d] == Axis::expert ? "experts " : "heads ") + std::to_string(wrong[0]) +
               " and " + std::to_string(wrong[1]) + " swapped";
    }
    if (axes[d] == Axis::pos || axes[d] == Axis::query || (axes[d] == Axis::key && d == 1)) {
      for (std::int64_t distance = 1; distance <= std::min<std::int64_t>(4, extent / 2); ++distance)
        for (std::int64_t by : {distance, -distance}) {
          std::vector<std::pair<std::int64_t, std::int64_t>> to_from;
          for (std::int64_t to = std::max<std::int64_t>(0, by); to < std::min(extent, extent + by);
               ++to)
            to_from.push_back({to, to - by});
          if (moved(output, reference, d, to_from)) return "rows shifted by " + std::to_string(by);
        }
    }
  }
  return "";
}

std::string precision(double relative) {
  if (relative < 0x1p-16) return "a precision below the declared one";
  if (relative < 0x1p-10) return std::string(kTf32Hint) + " or float16 (11 bits)";
  if (relative < 0x1p-7) return "precision about bfloat16 (8 bits)";
  if (relative < 0x1p-5) return "precision below bfloat16";
  return "";
}

}  // namespace

std::string diagnose(const Link& link, const std::vector<Array>& inputs, const Array& output,
                     const Contract& c, const Point& point, const Array& extra) {
  if (point.failed == 0) return precision(0);
  Pattern p = failure_pattern(link, inputs, output, c, extra);
  std::string place = where(link, output, p);
  auto with_place = [&](const std::string& what) {
    return place.empty() ? what : what + ": " + place;
  };
  bool scores = link.output.site == Site::attn_scores;
  if (scores && p.unmasked == p.count) return with_place("mask: keys of the future are visible");
  if (scores && p.hidden == p.count) return with_place("mask: keys are hidden");
  if (p.count == 1)
    return with_place(p.not_finite == 1 ? "one element, not finite" : "one element");
  if (p.not_finite == p.count) return with_place("not finite");
  if (p.zeros == p.count) return with_place("zeros");
  std::string move = movement(link, output, compute(link, inputs, output.shape(), serial_for), p);
  if (!move.empty()) return move;
  if (auto factor = scaled_by(p, c)) return with_place("scaled by " + short_number(*factor));
  double relative = p.reference_square > 0 ? std::sqrt(p.error_square / p.reference_square) : 1;
  bool everywhere = p.count * 20 > output.numel();
  if (everywhere && !precision(relative).empty()) return with_place(precision(relative));
  if (p.along + p.reference_square < 0.5 * std::sqrt(p.device_square * p.reference_square))
    return with_place("unrelated values");
  return place.empty() ? "everywhere" : place;
}

}  // namespace lenscpp
