// Processed against raw weights.
#include "verify/processing_check.h"

#include <fmt/format.h>

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

// Tokens spread over the vocabulary, the first and the last among them.
Request probe(const Config& config) {
  std::int64_t pos = std::min<std::int64_t>(6, config.n_ctx);
  std::vector<std::int64_t> tokens;
  for (std::int64_t p = 0; p < pos; ++p)
    tokens.push_back(pos == 1 ? 0 : p * (config.d_vocab - 1) / (pos - 1));
  return {.rows = Rows::from_tokens(std::move(tokens), 1, config)};
}

// Largest difference between the log-probabilities of two arrays of logits, and the logits' range.
struct Difference {
  double nats = 0, range = 0;
};
Difference log_probability_difference(const Array& a, const Array& b) {
  std::int64_t vocab = a.size(-1);
  Difference d;
  std::vector<double> x(vocab), y(vocab);
  auto normalise = [](std::vector<double>& v) {
    double max = *std::ranges::max_element(v), sum = 0;
    for (double e : v) sum += std::exp(e - max);
    for (double& e : v) e -= max + std::log(sum);
  };
  for (std::int64_t row = 0; row < a.numel() / vocab; ++row) {
    a.widen(row * vocab, x);
    b.widen(row * vocab, y);
    normalise(x);
    normalise(y);
    for (std::int64_t j = 0; j < vocab; ++j) {
      double difference = std::abs(x[j] - y[j]);
      if (!(difference <= d.nats)) d.nats = difference;
      if (std::isnan(difference)) return {std::numeric_limits<double>::infinity(), d.range};
      d.range = std::max(d.range, std::abs(x[j]));
    }
  }
  return d;
}

}  // namespace

namespace {

// The probe reads few rows of a table. Processing may move each row by a constant (its mean) and no
// more.
void check_rows(const Array& raw, const Array& processed, const char* name, std::int64_t begin,
                std::int64_t end) {
  std::int64_t cols = raw.size(1);
  double allowed = 4 * unit_roundoff(processed.dtype());
  std::vector<double> a(static_cast<std::size_t>(cols)), b(a.size());
  for (std::int64_t row = begin; row < end; ++row) {
    raw.widen(row * cols, a);
    processed.widen(row * cols, b);
    Eigen::Map<const Eigen::ArrayXd> x(a.data(), cols), y(b.data(), cols);
    double mean = (x - y).mean(), size = std::max(x.abs().maxCoeff(), y.abs().maxCoeff());
    if (((x - y - mean).abs() <= allowed * size).all()) continue;
    for (std::int64_t j = 0; j < cols; ++j)
      if (!(std::abs(a[j] - b[j] - mean) <= allowed * size))
        throw std::runtime_error(
            fmt::format("[processing] {} row {}: element {} is {:.9g}, which is not {:.9g} but for "
                        "a constant a "
                        "row. Load without processing.",
                        name, row, j, b[j], a[j]));
  }
}

}  // namespace

void check_processing(const Weights& raw, const Weights& processed, const ParallelFor& parallel) {
  auto check_table = [&](const Array& a, const Array& b, const char* name) {
    parallel(a.size(0),
             [&](std::int64_t begin, std::int64_t end) { check_rows(a, b, name, begin, end); });
  };
  check_table(raw.W_E, processed.W_E, "W_E");
  if (!raw.W_pos.empty()) check_table(raw.W_pos, processed.W_pos, "W_pos");
  Request request = probe(raw.config);
  Difference d = log_probability_difference(run_in_float64(raw, request, parallel),
                                            run_in_float64(processed, request, parallel));
  // Each of the K weights behind a sum is rounded once, and the roundings add up as a random walk
  // through 2 n_layers + 1 sums: u sqrt(d_mlp (2 n_layers + 1)) of the range, with a factor of 16
  // for unlucky models. A wrong step moves log-probabilities by whole nats. Of experts only the
  // chosen have a share.
  std::int64_t experts = raw.config.experts ? raw.config.experts->per_token : 1;
  double sums = static_cast<double>(experts * raw.config.d_mlp) *
                static_cast<double>(2 * raw.config.n_layers + 1);
  double limit =
      16 * std::max(unit_roundoff(processed.dtype), 0x1p-52) * std::sqrt(sums) * (1 + d.range);
  if (!(d.nats <= limit))
    throw std::runtime_error(
        fmt::format("[processing] the processed weights compute another model than the checkpoint: "
                    "log-probabilities differ by {:.3g} nats in float64 (allowed: {:.3g}). "
                    "Load without processing.",
                    d.nats, limit));
}

}  // namespace lenscpp
