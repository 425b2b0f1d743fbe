// Projections of weights, and products checked by them.
#include "verify/reference/checksum.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "verify/reference/ops.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kColumns = 1024;  // of R at a time: 32 KiB stay near while rows pass by
constexpr std::int64_t kTileRows = 32;   // of the tiles in which devices compute products

bool is_product(const Link& link) {
  return link.op == Op::linear || link.op == Op::head_linear || link.op == Op::head_result;
}

// Heads of a product's output: one where the weight acts as a whole.
std::int64_t heads_of(const Link& link, const Shape& out) {
  return link.op == Op::linear ? 1 : out[out.size() - 2];
}

// Neither +-1, whose sums cancel, nor Gaussian, whose smallest weights see nothing.
Projection::Columns random_columns(std::uint64_t seed, std::int64_t rows) {
  std::seed_seq seeds{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
                      static_cast<std::uint32_t>(rows)};
  std::mt19937_64 random(seeds);
  Projection::Columns R(rows, 4);
  for (Index i = 0; i < R.size(); ++i) {
    std::uint64_t bits = random();
    double size = 0.5 + static_cast<double>(bits >> 11) * 0x1p-53;
    R.data()[i] = (bits & 1) != 0 ? size : -size;
  }
  return R;
}

Projection project_weight(const Link& link, std::int64_t heads, std::uint64_t seed,
                          const ParallelFor& parallel) {
  const Matrix& w = *link.weight;
  bool inputs_of_heads = link.op == Op::head_result, outputs_of_heads = link.op == Op::head_linear;
  Projection p{.heads = heads,
               .terms = inputs_of_heads ? w.in / heads : w.in,
               .width = outputs_of_heads ? w.out / heads : w.out,
               .R = {},
               .P = {},
               .w_square = {},
               .weight = w.storage};
  p.R = random_columns(seed, heads * p.width);
  p.P = Projection::Columns::Zero(heads * p.terms, 4);
  p.w_square = Eigen::VectorXd::Zero(heads * p.terms);
  constexpr std::int64_t kRows = 64;
  std::int64_t per_head = (p.terms + kRows - 1) / kRows;
  parallel(heads * per_head, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::int64_t h = i / per_head, first = i % per_head * kRows,
                   count = std::min(kRows, p.terms - first);
      for (std::int64_t j = 0; j < p.width; j += kColumns) {
        std::int64_t columns = std::min(kColumns, p.width - j);
        Mat block = weight_block(w, (inputs_of_heads ? h * p.terms : 0) + first, count,
                                 (outputs_of_heads ? h * p.width : 0) + j, columns);
        p.P.middleRows(h * p.terms + first, count).noalias() +=
            block * p.R.middleRows(h * p.width + j, columns);
        p.w_square.segment(h * p.terms + first, count) += block.rowwise().squaredNorm();
      }
    }
  });
  return p;
}

// Sums over one row of a tensor.
struct RowSums {
  Eigen::RowVector4d projected = Eigen::RowVector4d::Zero();
  double square = 0;
};

RowSums sums_over(const Array& array, std::int64_t offset, std::int64_t length,
                  const Projection::Columns& columns, std::int64_t first,
                  std::vector<double>& row) {
  RowSums sums;
  for (std::int64_t j = 0; j < length; j += kColumns) {
    auto count = static_cast<std::size_t>(std::min(kColumns, length - j));
    array.widen(offset + j, {row.data(), count});
    Eigen::Map<const Eigen::RowVectorXd> part(row.data(), static_cast<Index>(count));
    for (Index k = 0; k < 4; ++k)
      sums.projected[k] += part.dot(columns.col(k).segment(first + j, part.size()));
    sums.square += part.squaredNorm();
  }
  return sums;
}

// The standard deviation that honest rounding can give a residual. Beside the spec's terms: the
// drift of coherent partial sums (see expected_square in bounds.h), declared rounding of operands
// (each product off by 2 u_x of itself), and this file's own roundings.
double sigma(const Contract& c, const Projection& p, double x_square_w, double y_square,
             double b_square) {
  auto terms = static_cast<double>(p.terms);
  double factor = c.narrow ? 2 * terms : 2 * std::sqrt(terms);
  double device = factor * factor * (x_square_w + b_square) + terms * y_square / 4;
  double declared = 4 * c.u_x * c.u_x * x_square_w;
  double own = 4 * static_cast<double>(p.width) * (x_square_w + b_square + y_square);
  return c.reference * std::sqrt(c.u_s * c.u_s * y_square + c.u_a * c.u_a * device + declared +
                                 0x1p-106 * own + static_cast<double>(p.width) * c.eta * c.eta);
}

}  // namespace

double residual_rms_limit(std::int64_t rows) {
  return std::max(0.6, 0.45 * (1 + 6 / std::sqrt(8 * static_cast<double>(rows))));
}

std::uint64_t Projections::secret_seed() {
  static const std::uint64_t seed = [] {
    std::random_device device;
    return static_cast<std::uint64_t>(device()) << 32 | device();
  }();
  return seed;
}

const Projection& Projections::of(const Link& link, std::int64_t heads,
                                  const ParallelFor& parallel) {
  const Matrix& w = *link.weight;
  std::lock_guard lock(mutex_);
  auto& known =
      known_[{w.storage.bytes(), w.first_output, w.out, w.outputs_are_rows, link.op, heads}];
  if (!known)
    known = std::make_unique<const Projection>(project_weight(link, heads, seed_, parallel));
  return *known;
}

Residuals project(const Link& link, const Array& input, const Array& output, const Contract& c,
                  Projections& projections, const ParallelFor& parallel) {
  const Projection& p = projections.of(link, heads_of(link, output.shape()), parallel);
  std::int64_t rows = output.numel() / p.width;  // a head's row being one
  if (rows * p.width != output.numel() || rows * p.terms != input.numel() || rows % p.heads != 0)
    throw std::invalid_argument("[checksum] " + to_string(link.output) + ": input " +
                                to_string(input.shape()) + " and output " +
                                to_string(output.shape()) + " do not fit the weight");
  std::vector<double> bias(static_cast<std::size_t>(p.heads * p.width), 0.0);
  if (link.bias) link.bias->storage.widen(link.bias->first, bias);
  Eigen::Map<const Eigen::VectorXd> b(bias.data(), p.heads * p.width);

  Residuals all{.rows = rows};
  double square = 0;
  std::mutex mutex;
  parallel(rows, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> buffer(kColumns);
    double worst = 0, sum = 0;
    for (std::int64_t r = begin; r < end; ++r) {
      std::int64_t h = r % p.heads;
      auto y = sums_over(output, r * p.width, p.width, p.R, h * p.width, buffer);
      auto x = sums_over(input, r * p.terms, p.terms, p.P, h * p.terms, buffer);
      auto b_h = b.segment(h * p.width, p.width);
      double x_square_w = 0;
      for (std::int64_t j = 0; j < p.terms; j += kColumns) {
        auto count = std::min(kColumns, p.terms - j);
        input.widen(r * p.terms + j, {buffer.data(), static_cast<std::size_t>(count)});
        Eigen::Map<const Eigen::VectorXd> part(buffer.data(), count);
        x_square_w += part.cwiseAbs2().dot(p.w_square.segment(h * p.terms + j, count));
      }
      double s = sigma(c, p, x_square_w, y.square, b_h.squaredNorm());
      Eigen::RowVector4d residual =
          y.projected - x.projected - b_h.transpose() * p.R.middleRows(h * p.width, p.width);
      for (double e : residual) {
        double ratio = std::abs(e) / s;
        // Not finite, or nothing allowed: the exact check must judge.
        if (!(ratio <= std::numeric_limits<double>::max()) || !std::isfinite(s))
          ratio = std::numeric_limits<double>::infinity();
        worst = std::max(worst, ratio / kResidualSigmas);
        sum += ratio * ratio;
      }
    }
    std::lock_guard lock(mutex);
    all.worst = std::max(all.worst, worst);
    square += sum;
  });
  all.rms = rows > 0 ? std::sqrt(square / static_cast<double>(4 * rows)) : 0;
  return all;
}

namespace {

// Elements [first, first + count) of the given rows of `row_length` elements, as [1, rows, ...].
Array gathered(const Array& array, const std::vector<std::int64_t>& rows, std::int64_t row_length,
               std::int64_t first, std::int64_t count, Shape rest) {
  rest.insert(rest.begin(), {1, static_cast<std::int64_t>(rows.size())});
  MutableArray part(rest, array.dtype());
  auto width = static_cast<std::int64_t>(size_of(array.dtype()));
  std::byte* to = part.bytes();
  for (std::int64_t r : rows) {
    std::memcpy(to, array.bytes() + (r * row_length + first) * width, count * width);
    to += count * width;
  }
  return std::move(part).freeze();
}

// The first row, the first of the last tile, and the last: where devices go wrong alone.
std::vector<std::int64_t> sampled_rows(std::int64_t rows) {
  std::vector<std::int64_t> sample{0, (rows - 1) / kTileRows * kTileRows, rows - 1};
  sample.erase(std::unique(sample.begin(), sample.end()), sample.end());
  return sample;
}

// Column ranges of those rows: all of them where that is a small share of the product, else the
// last ones (a partial tile) and some that nobody can foresee.
std::vector<std::pair<std::int64_t, std::int64_t>> sampled_columns(std::int64_t rows,
                                                                   std::int64_t sample,
                                                                   std::int64_t width,
                                                                   std::uint64_t secret) {
  constexpr std::int64_t kShare = 32, kLeast = 32;
  std::int64_t each = std::max(kLeast, rows * width / (sample * kShare) / 2);
  if (2 * each >= width) return {{0, width}};
  auto first = static_cast<std::int64_t>(secret % static_cast<std::uint64_t>(width - 2 * each + 1));
  return {{first, each}, {width - each, each}};
}

// The exact check of a part of a product: of whole rows, and of some columns where it has no heads.
Point check_sample(const Link& link, const Array& input, const Array& output, const Contract& c,
                   const Projection& p, std::uint64_t seed, const ParallelFor& parallel) {
  std::int64_t rows = output.numel() / (p.heads * p.width);
  auto sample = sampled_rows(rows);
  std::int64_t in_row = p.heads * p.terms, out_row = p.heads * p.width;
  Shape in_rest = p.heads == 1 ? Shape{p.terms} : Shape{p.heads, p.terms};
  Array x = gathered(input, sample, in_row, 0, in_row, in_rest);
  Point total{.id = link.output, .op = link.op, .shape = {}};
  auto add = [&](const Link& part, const Array& y) {
    Point point = check_exact(part, {x}, y, c, parallel);
    total.compared += point.compared;
    total.failed += point.failed + (point.passed() ? 0 : 1);
    total.worst_ratio = std::max(total.worst_ratio, point.worst_ratio);
    total.rms_ratio = std::max(total.rms_ratio, point.rms_ratio);
  };
  if (p.heads > 1) {
    add(link, gathered(output, sample, out_row, 0, out_row, {p.heads, p.width}));
    return total;
  }
  std::uint64_t secret =
      seed ^ (static_cast<std::uint64_t>(link.output.site) * 0x9e3779b97f4a7c15u +
              static_cast<std::uint64_t>(link.output.layer) * 0xbf58476d1ce4e5b9u);
  for (auto [first, count] : sampled_columns(rows, std::ssize(sample), p.width, secret)) {
    Link part = link;
    part.weight->first_output += first;
    part.weight->out = count;
    if (part.bias) {
      part.bias->first += first;
      part.bias->size = count;
    }
    add(part, gathered(output, sample, out_row, first, count, {count}));
  }
  return total;
}

}  // namespace

Point check_checksum(const Link& link, const std::vector<Array>& inputs, const Array& output,
                     const Contract& contract, Projections& projections,
                     const ParallelFor& parallel) {
  if (!is_product(link) || inputs.at(0).empty() || output.empty())
    return check_exact(link, inputs, output, contract, parallel);
  Residuals residuals = project(link, inputs[0], output, contract, projections, parallel);
  if (!residuals.clean()) return check_exact(link, inputs, output, contract, parallel);
  const Projection& p = projections.of(link, heads_of(link, output.shape()), parallel);
  Point point = check_sample(link, inputs[0], output, contract, p, projections.seed(), parallel);
  if (point.failed > 0) return check_exact(link, inputs, output, contract, parallel);
  point.shape = output.shape();
  point.projected = output.numel() - point.compared;
  point.residual = residuals.worst;
  return point;
}

}  // namespace lenscpp
