// Projections of weights, and products checked by them.
#include "verify/reference/checksum.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>

#include "verify/reference/ops.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kColumns = 1024;  // of R at a time: 32 KiB stay near while rows pass by
constexpr std::int64_t kFewOutputs = 64;
constexpr std::int64_t kTileRows = 32;  // of the tiles in which devices compute products

bool is_product(const Link& link) {
  return link.op == Op::linear || link.op == Op::head_linear || link.op == Op::head_result;
}

void require_fit(const Link& link, const Projection& p, const Array& input, const Array& output) {
  std::int64_t rows = output.numel() / p.width;  // a head's row being one
  if (rows * p.width != output.numel() || rows * p.terms != input.numel() || rows % p.heads != 0)
    throw std::invalid_argument("[checksum] " + to_string(link.output) + ": input " +
                                to_string(input.shape()) + " and output " +
                                to_string(output.shape()) + " do not fit the weight");
}

bool worth_threads(const Array& input, const Array& output) {
  constexpr std::int64_t kWorthThreads = 1 << 17;  // elements: about 50 microseconds
  return output.numel() + input.numel() >= kWorthThreads;
}

// Heads of a product's output: one where the weight acts as a whole.
std::int64_t heads_of(const Link& link, const Shape& out) {
  return link.op == Op::linear ? 1 : out[out.size() - 2];
}

// Neither +-1, whose sums cancel, nor Gaussian, whose smallest weights see nothing.
// Each weight has vectors of its own, so that what escapes one layer's need not escape the next's.
Projection::Columns random_columns(std::uint64_t seed, const Link& link, std::int64_t rows) {
  std::seed_seq seeds{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32),
                      static_cast<std::uint32_t>(link.output.site),
                      static_cast<std::uint32_t>(link.output.layer)};
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
  p.R = random_columns(seed, link, heads * p.width);
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

constexpr Index kTogether = 4;  // rows: R and P are read once for so many
constexpr Index kChunk = 512;   // elements widened at a time: with four columns they stay in L1

// Sums over rows of a tensor, a few rows together.
struct Sums {
  std::array<std::array<double, 4>, kTogether> projected{};
  std::array<double, kTogether> square{};
};

// The rows of a tensor that one head's vectors belong to.
struct HeadRows {
  const Array& array;
  std::int64_t offset, stride, count, length;  // of rows: at most kTogether, of `length` elements
};

// Adds the first `length` elements, a multiple of the packet's, of widened rows to `sums`: products
// with four columns, and squares, weighed where `weights` are given.
template <bool weighed>
void add_packets(const double (&rows)[kTogether][kChunk], Index length,
                 const std::array<const double*, 4>& columns, const double* weights, Sums& sums) {
  using namespace Eigen::internal;
  using P = Packet<double>;
  P products[kTogether][4], squares[kTogether];
  for (auto& row : products)
    for (auto& sum : row) sum = pset1<P>(0.0);
  for (auto& sum : squares) sum = pset1<P>(0.0);
  for (Index j = 0; j < length; j += kLanes<double>) {
    P column[4], weight = weighed ? ploadu<P>(weights + j) : pset1<P>(1.0);
    for (Index k = 0; k < 4; ++k) column[k] = ploadu<P>(columns[k] + j);
    for (Index r = 0; r < kTogether; ++r) {
      P x = ploadu<P>(&rows[r][j]);
      for (Index k = 0; k < 4; ++k) products[r][k] = pmadd(x, column[k], products[r][k]);
      squares[r] = pmadd(weighed ? pmul(x, weight) : x, x, squares[r]);
    }
  }
  for (Index r = 0; r < kTogether; ++r) {
    for (Index k = 0; k < 4; ++k) sums.projected[r][k] += predux(products[r][k]);
    sums.square[r] += predux(squares[r]);
  }
}

// `columns` from `first` on, and `weights` of the squares (none: 1 each).
Sums sums_over(const HeadRows& rows, const Projection::Columns& columns, Index first,
               const double* weights) {
  Sums sums;
  alignas(64) double chunk[kTogether][kChunk] = {};
  for (Index j = 0; j < rows.length; j += kChunk) {
    Index count = std::min(kChunk, rows.length - j),
          whole = count / kLanes<double> * kLanes<double>;
    for (Index r = 0; r < rows.count; ++r)
      rows.array.widen(rows.offset + r * rows.stride + j,
                       {chunk[r], static_cast<std::size_t>(count)});
    std::array<const double*, 4> parts;
    for (Index k = 0; k < 4; ++k) parts[k] = &columns(first + j, k);
    if (weights != nullptr)
      add_packets<true>(chunk, whole, parts, weights + j, sums);
    else
      add_packets<false>(chunk, whole, parts, nullptr, sums);
    for (Index r = 0; r < rows.count; ++r)
      for (Index i = whole; i < count; ++i) {
        double x = chunk[r][i];
        for (Index k = 0; k < 4; ++k) sums.projected[r][k] += x * parts[k][i];
        sums.square[r] += x * x * (weights != nullptr ? weights[j + i] : 1);
      }
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

// What a head's bias adds to every row.
struct Bias {
  Eigen::RowVector4d projected;
  double square;
};

std::vector<Bias> bias_of(const Link& link, const Projection& p) {
  Eigen::VectorXd bias = Eigen::VectorXd::Zero(p.heads * p.width);
  if (link.bias)
    link.bias->storage.widen(link.bias->first,
                             {bias.data(), static_cast<std::size_t>(bias.size())});
  std::vector<Bias> biases;
  for (std::int64_t h = 0; h < p.heads; ++h) {
    auto b = bias.segment(h * p.width, p.width);
    biases.push_back({b.transpose() * p.R.middleRows(h * p.width, p.width), b.squaredNorm()});
  }
  return biases;
}

SomeColumns columns_of(const Link& link, const std::vector<ColumnRange>& ranges) {
  const Matrix& w = *link.weight;
  std::int64_t n = 0, to = 0;
  for (auto [first, count] : ranges) n += count;
  MutableArray weight({n, w.in}, w.storage.dtype());
  std::optional<MutableArray> bias;
  if (link.bias) bias.emplace(Shape{n}, link.bias->storage.dtype());
  for (auto [first, count] : ranges) {
    Mat block = weight_block(w, 0, w.in, first, count).transpose();  // [count, in]
    weight.store(to * w.in, {block.data(), static_cast<std::size_t>(block.size())});
    for (std::int64_t i = 0; bias && i < count; ++i)
      bias->set(to + i, link.bias->storage[link.bias->first + first + i]);
    to += count;
  }
  SomeColumns some{.ranges = ranges,
                   .weight = {.storage = std::move(weight).freeze(),
                              .in = w.in,
                              .out = n,
                              .outputs_are_rows = true},
                   .bias = {},
                   .of = w.storage};
  if (bias) some.bias = Vector{.storage = std::move(*bias).freeze(), .size = n};
  return some;
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
  std::lock_guard lock(mutex_);
  auto& known = known_[key_of(link, heads)];
  if (!known)
    known = std::make_unique<const Projection>(project_weight(link, heads, seed_, parallel));
  return *known;
}

const SomeColumns& Projections::columns(const Link& link, const std::vector<ColumnRange>& ranges) {
  std::lock_guard lock(mutex_);
  auto& known = columns_[key_of(link, 1)];
  if (!known) known = std::make_unique<const SomeColumns>(columns_of(link, ranges));
  return *known;
}

Projections::Key Projections::key_of(const Link& link, std::int64_t heads) {
  const Matrix& w = *link.weight;
  return {w.storage.bytes(), w.first_output, w.out, w.outputs_are_rows, link.op, heads};
}

Residuals project(const Link& link, const Array& input, const Array& output, const Contract& c,
                  Projections& projections, const ParallelFor& parallel) {
  const Projection& p = projections.of(link, heads_of(link, output.shape()), parallel);
  require_fit(link, p, input, output);
  std::int64_t rows = output.numel() / p.width;  // a head's row being one
  std::vector<Bias> biases = bias_of(link, p);
  std::int64_t positions = rows / p.heads, tiles = (positions + kTogether - 1) / kTogether;
  Residuals all{.rows = rows};
  double square = 0;
  std::mutex mutex;
  const ParallelFor serial = serial_for;
  (worth_threads(input, output) ? parallel : serial)(
      p.heads * tiles, [&](std::int64_t begin, std::int64_t end) {
        double worst = 0, sum = 0;
        for (std::int64_t i = begin; i < end; ++i) {
          std::int64_t h = i / tiles, first = i % tiles * kTogether,
                       count = std::min<std::int64_t>(kTogether, positions - first);
          auto rows_of = [&](const Array& array, std::int64_t length) {
            return HeadRows{array, (first * p.heads + h) * length, p.heads * length, count, length};
          };
          Sums y = sums_over(rows_of(output, p.width), p.R, h * p.width, nullptr);
          Sums x = sums_over(rows_of(input, p.terms), p.P, h * p.terms, &p.w_square[h * p.terms]);
          for (std::int64_t r = 0; r < count; ++r) {
            double s = sigma(c, p, x.square[r], y.square[r], biases[h].square);
            for (Index k = 0; k < 4; ++k) {
              double e = y.projected[r][k] - x.projected[r][k] - biases[h].projected[k];
              double ratio = std::abs(e) / s;
              // Not finite, or nothing allowed: the exact check must judge.
              if (!(ratio <= std::numeric_limits<double>::max()) || !std::isfinite(s))
                ratio = std::numeric_limits<double>::infinity();
              worst = std::max(worst, ratio / kResidualSigmas);
              sum += ratio * ratio;
            }
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

// Some columns of the given rows of `row_length` elements, as [1, rows, ...].
Array gathered(const Array& array, const std::vector<std::int64_t>& rows, std::int64_t row_length,
               const std::vector<ColumnRange>& columns, Shape rest) {
  rest.insert(rest.begin(), {1, static_cast<std::int64_t>(rows.size())});
  MutableArray part(rest, array.dtype());
  auto width = static_cast<std::int64_t>(size_of(array.dtype()));
  std::byte* to = part.bytes();
  for (std::int64_t r : rows)
    for (auto [first, count] : columns)
      to = std::copy_n(array.bytes() + (r * row_length + first) * width, count * width, to);
  return std::move(part).freeze();
}

// The first row, the first of the last tile, and the last: where devices go wrong alone.
std::vector<std::int64_t> sampled_rows(std::int64_t rows) {
  std::vector<std::int64_t> sample{0, (rows - 1) / kTileRows * kTileRows, rows - 1};
  sample.erase(std::unique(sample.begin(), sample.end()), sample.end());
  return sample;
}

constexpr std::int64_t kLeast = 16;  // columns: a line of memory

// Column ranges of those rows: all of them where that is a small share of the product, else the
// last ones (a partial tile) and some that nobody can foresee. What a column costs is mostly to
// widen its weights, as much as multiplying kRowsWorth rows.
std::vector<ColumnRange> sampled_columns(std::int64_t rows, std::int64_t sample, std::int64_t width,
                                         std::uint64_t secret) {
  constexpr std::int64_t kShare = 32, kRowsWorth = 128;
  std::int64_t each = std::max(kLeast, rows * width / ((sample + kRowsWorth) * kShare) / 2);
  if (2 * each >= width) return {{0, width}};
  auto first = static_cast<std::int64_t>(secret % static_cast<std::uint64_t>(width - 2 * each + 1));
  first = first / kLeast * kLeast;
  return {{first, each}, {width - each, each}};
}

// The exact check of a part of a product: of whole rows, and of some columns where it has no heads.
Point check_sample(const Link& link, const Array& input, const Array& output, const Contract& c,
                   const Projection& p, Projections& projections, const ParallelFor& parallel) {
  std::int64_t rows = output.numel() / (p.heads * p.width);
  auto sample = sampled_rows(rows);
  std::int64_t in_row = p.heads * p.terms, out_row = p.heads * p.width;
  Shape in_rest = p.heads == 1 ? Shape{p.terms} : Shape{p.heads, p.terms};
  Array x = gathered(input, sample, in_row, {{0, in_row}}, in_rest);
  Point total{.id = link.output, .op = link.op, .shape = {}};
  auto add = [&](const Link& part, const Array& y) {
    Point point = check_exact(part, {x}, y, c, parallel);
    total.compared += point.compared;
    total.failed += point.failed + (point.passed() ? 0 : 1);
    total.worst_ratio = std::max(total.worst_ratio, point.worst_ratio);
    total.rms_ratio = std::max(total.rms_ratio, point.rms_ratio);
  };
  if (p.heads > 1) {
    add(link, gathered(output, sample, out_row, {{0, out_row}}, {p.heads, p.width}));
    return total;
  }
  std::uint64_t secret =
      projections.seed() ^ (static_cast<std::uint64_t>(link.output.site) * 0x9e3779b97f4a7c15u +
                            static_cast<std::uint64_t>(link.output.layer) * 0xbf58476d1ce4e5b9u);
  auto ranges = sampled_columns(rows, std::ssize(sample), p.width, secret);
  Link part = link;
  part.op = Op::linear;  // as a product of one head is, too
  // The least that is ever sampled comes from memory of its own, where it stands together.
  if (ranges[0].second == kLeast) {
    const SomeColumns& some = projections.columns(link, ranges);
    part.weight = some.weight;
    part.bias = some.bias;
    add(part, gathered(output, sample, out_row, some.ranges, {some.weight.out}));
    return total;
  }
  for (auto [first, count] : ranges) {
    part.weight->first_output = link.weight->first_output + first;
    part.weight->out = count;
    if (part.bias) part.bias = Vector{link.bias->storage, count, link.bias->first + first};
    add(part, gathered(output, sample, out_row, {{first, count}}, {count}));
  }
  return total;
}

}  // namespace

Point check_checksum(const Link& link, const std::vector<Array>& inputs, const Array& output,
                     const Contract& contract, Projections& projections,
                     const ParallelFor& parallel) {
  // Of few outputs, as of the logits that a metric reads, recomputing is as cheap; and such a
  // weight is made for one run: no projections of it are kept.
  if (!is_product(link) || inputs.at(0).empty() || output.empty() ||
      link.weight->out <= kFewOutputs)
    return check_exact(link, inputs, output, contract, parallel);
  const Projection& p = projections.of(link, heads_of(link, output.shape()), parallel);
  require_fit(link, p, inputs[0], output);
  Residuals residuals;
  Point point;
  auto rows = [&](const ParallelFor& threads) {
    residuals = project(link, inputs[0], output, contract, projections, threads);
  };
  auto sample = [&](const ParallelFor& threads) {
    point = check_sample(link, inputs[0], output, contract, p, projections, threads);
  };
  if (worth_threads(inputs[0], output)) {
    rows(parallel);
    sample(parallel);
  } else {  // too little for each to be shared, enough for a thread each
    parallel(2, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) i == 0 ? rows(serial_for) : sample(serial_for);
    });
  }
  if (!residuals.clean() || point.failed > 0)
    return check_exact(link, inputs, output, contract, parallel);
  point.shape = output.shape();
  point.projected = output.numel() - point.compared;
  point.residual = residuals.worst;
  return point;
}

}  // namespace lenscpp
