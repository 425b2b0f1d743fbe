// The operations in float64. One class an operation, each read beside its line in bounds.h.
#include "verify/reference/ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "verify/reference/erfc.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kBlockElements = 4096;  // 32 KiB of doubles: value and slack stay near
constexpr std::int64_t kBlockQueries = 64;     // of attention: whole heads would leave the caches
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

void require(bool holds, const Link& link, const char* what) {
  if (!holds) throw std::invalid_argument("[reference] " + to_string(link.output) + ": " + what);
}

// Runs of an array, widened: each `stride` after the one before, a row of a row-major or a column
// of a column-major matrix.
template <class M = Mat>
M widened(const Array& array, std::int64_t offset, std::int64_t stride, std::int64_t runs,
          std::int64_t length) {
  M m(M::IsRowMajor ? runs : length, M::IsRowMajor ? length : runs);
  for (Index r = 0; r < runs; ++r)
    array.widen(offset + r * stride, {m.data() + r * length, static_cast<std::size_t>(length)});
  return m;
}
Mat widened(const Array& array, const Block& b) {
  return widened(array, b.offset, b.row_stride, b.rows, b.cols);
}

// [rows, last axis] in blocks of whole rows.
std::vector<Block> row_blocks(const Shape& shape) {
  std::int64_t cols = shape.back(), rows = cols == 0 ? 0 : numel(shape) / cols;
  std::int64_t step = std::max<std::int64_t>(1, kBlockElements / std::max<std::int64_t>(1, cols));
  std::vector<Block> blocks;
  for (std::int64_t r = 0; r < rows; r += step)
    blocks.push_back({r * cols, cols, std::min(step, rows - r), cols});
  return blocks;
}

Expectation exactly(Mat value) {
  Mat slack = Mat::Constant(value.rows(), value.cols(), kExact);
  return {.value = std::move(value), .slack = std::move(slack), .refine = {}};
}

// Whether two runs hold equal numbers: NaN equals nothing, zeros of either sign are equal. False
// also where that takes a closer look: at runs of different types, at narrow zeros of different
// signs.
bool equal_runs(const Array& a, std::int64_t at, const Array& b, std::int64_t bt, std::int64_t n) {
  if (a.dtype() != b.dtype()) return false;
  auto equal = [&]<class T>(T) {
    auto x = a.as<T>().subspan(at, n), y = b.as<T>().subspan(bt, n);
    std::int64_t differ = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      bool same = x[i] == y[i];
      if constexpr (std::is_same_v<T, std::uint16_t>)
        same &= (x[i] & 0x7fff) <= (a.dtype() == DType::bf16 ? 0x7f80 : 0x7c00);
      differ += !same;
    }
    return differ == 0;
  };
  switch (a.dtype()) {
    case DType::f32:
      return equal(float{});
    case DType::f64:
      return equal(double{});
    case DType::bf16:
    case DType::f16:
      return equal(std::uint16_t{});
    case DType::i64:
      return equal(std::int64_t{});
  }
  throw std::logic_error("[reference] not a DType");
}

// Operations whose rows are known to the bit: copies of what stands elsewhere.
class Copies : public Kernel {
 public:
  Expectation expect(const Block& b) const final {
    Mat value(b.rows, b.cols);
    for (Index r = 0; r < b.rows; ++r) {
      Place from = source(b.offset / b.cols + r);
      from.array.widen(from.offset, {&value(r, 0), static_cast<std::size_t>(b.cols)});
    }
    return exactly(std::move(value));
  }
  bool holds(const Block& b, const Array& output) const final {
    for (Index r = 0; r < b.rows; ++r) {
      Place from = source(b.offset / b.cols + r);
      if (!equal_runs(from.array, from.offset, output, b.offset + r * b.cols, b.cols)) return false;
    }
    return true;
  }

 protected:
  struct Place {
    const Array& array;
    std::int64_t offset;
  };
  virtual Place source(std::int64_t row) const = 0;
};

class Given : public Copies {
 public:
  Given(const Link& link, const Shape& out) : values_(link.given), cols_(out.back()) {
    require(values_.shape() == out, link, "the given values have another shape");
    blocks_ = row_blocks(out);
  }

 private:
  Place source(std::int64_t row) const override { return {values_, row * cols_}; }
  Array values_;
  std::int64_t cols_;
};

class Gather : public Copies {
 public:
  Gather(const Link& link, const Shape& out)
      : table_(link.weight->storage), ids_(link.given), cols_(table_.size(1)) {
    require(numel(out) == ids_.numel() * cols_, link, "one row a token is needed");
    blocks_ = row_blocks({ids_.numel(), cols_});
  }

 private:
  Place source(std::int64_t row) const override {
    return {table_, ids_.as<std::int64_t>()[row] * cols_};
  }
  Array table_, ids_;
  std::int64_t cols_;
};

// Each row may be repeated (over heads).
class Copy : public Copies {
 public:
  Copy(const Link& link, Array in, const Shape& out) : in_(std::move(in)), cols_(out.back()) {
    require(in_.size(-1) == cols_ && numel(out) % in_.numel() == 0, link,
            "a copy of another width");
    repeats_ = numel(out) / in_.numel();
    blocks_ = row_blocks(out);
  }

 private:
  Place source(std::int64_t row) const override { return {in_, row / repeats_ * cols_}; }
  Array in_;
  std::int64_t cols_, repeats_;
};

// Along the key axis of [batch, key, kv_head, d_head]: the base's positions, then those computed.
class Concat : public Copies {
 public:
  Concat(const Link& link, Array in, const Shape& out)
      : base_(link.given), in_(std::move(in)), cols_(out[2] * out[3]) {
    require(base_.size(1) + in_.size(1) == out[1], link,
            "base and computed positions do not add up");
    blocks_ = row_blocks({out[0] * out[1], cols_});
  }

 private:
  Place source(std::int64_t row) const override {
    std::int64_t base = base_.size(1), computed = in_.size(1), prompt = row / (base + computed),
                 key = row % (base + computed);
    if (key < base) return {base_, (prompt % base_.size(0) * base + key) * cols_};
    return {in_, (prompt * computed + key - base) * cols_};
  }
  Array base_, in_;
  std::int64_t cols_;
};

// Along the batch: the prompts already there, then those that enter.
class Enter : public Copies {
 public:
  Enter(const Link& link, Array in, const Shape& out)
      : in_(std::move(in)), given_(link.given), cols_(out.back()) {
    require(in_.numel() + given_.numel() == numel(out) && given_.size(-1) == cols_, link,
            "the prompts do not add up");
    blocks_ = row_blocks(out);
  }

 private:
  Place source(std::int64_t row) const override {
    std::int64_t at = row * cols_;
    if (at < in_.numel()) return {in_, at};
    return {given_, at - in_.numel()};
  }
  Array in_, given_;
  std::int64_t cols_;
};

// One position of [batch, pos, ...].
class Select : public Copies {
 public:
  Select(const Link& link, Array in, const Shape& out)
      : in_(std::move(in)), link_(link), cols_(numel(out) / out[0]) {
    bool there = true;
    for (std::int64_t b = 0; b < out[0]; ++b)
      there &= link.selected(b) >= 0 && link.selected(b) < in_.size(1);
    require(there && in_.size(0) == out[0] && in_.numel() == numel(out) * in_.size(1), link,
            "no such position");
    blocks_ = row_blocks({out[0], cols_});
  }

 private:
  Place source(std::int64_t prompt) const override {
    return {in_, (prompt * in_.size(1) + link_.selected(prompt)) * cols_};
  }
  Array in_;
  Link link_;
  std::int64_t cols_;
};

// Values that the request alone determines; the reference has its own of them.
class Table : public Kernel {
 public:
  Table(const Link& link, const Shape& out)
      : values_(link.given), slack_(table_slack(link.scalar)) {
    require(values_.shape() == out, link, "the table has another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    return {
        .value = widened(values_, b), .slack = Mat::Constant(b.rows, b.cols, slack_), .refine = {}};
  }

 private:
  Array values_;
  double slack_;
};

// [head, query, key]: slope times (key - query) where key <= query, 0 elsewhere.
class Distances : public Kernel {
 public:
  Distances(const Link& link, const Shape& out)
      : slopes_(link.given.to_doubles()), first_query_(link.first_query), queries_(out[1]) {
    require(std::ssize(slopes_) == out[0], link, "one slope a head is needed");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Expectation e{.value = Mat::Zero(b.rows, b.cols), .slack = {}, .refine = {}};
    for (Index r = 0; r < b.rows; ++r) {
      std::int64_t row = b.offset / b.cols + r, query = row % queries_ + first_query_;
      double slope = slopes_[static_cast<std::size_t>(row / queries_)];
      for (Index key = 0; key <= std::min<Index>(query, b.cols - 1); ++key)
        e.value(r, key) = slope * static_cast<double>(key - query);
    }
    // Beyond float64's own rounding of the slope, nothing: a query is at distance 0 from itself.
    e.slack = e.value.cwiseAbs() * 0x1p-50;
    return e;
  }

 private:
  std::vector<double> slopes_;
  std::int64_t first_query_, queries_;
};

// The second summand may be one prompt's, which serves them all. Of two, the sum is rounded once;
// of three, the first sum is rounded as it is accumulated.
class Add : public Kernel {
 public:
  Add(const Link& link, std::vector<Array> in, const Shape& out, const Contract& c)
      : in_(std::move(in)), c_(c) {
    require(in_.at(0).shape() == out && numel(out) % in_.at(1).numel() == 0 &&
                (in_.size() == 2 || (in_.size() == 3 && in_[2].shape() == out)) &&
                in_[1].size(-1) == out.back(),
            link, "summands of another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat first = widened(in_[0], b), second(b.rows, b.cols);
    for (Index r = 0; r < b.rows; ++r)
      in_[1].widen((b.offset + r * b.cols) % in_[1].numel(),
                   {&second(r, 0), static_cast<std::size_t>(b.cols)});
    Expectation e{.value = first + second, .slack = Mat::Zero(b.rows, b.cols), .refine = {}};
    if (in_.size() == 3) {
      Mat third = widened(in_[2], b);
      e.slack = (first.cwiseAbs() + second.cwiseAbs() + third.cwiseAbs()) * sum_slack(c_, 2, 1);
      e.value += third;
    }
    // A masked score stays masked.
    e.slack = (first.array() == -kInfinity).select(kExact, e.slack);
    return e;
  }

 private:
  std::vector<Array> in_;
  Contract c_;
};

// The second factor may be one a row.
class Multiply : public Kernel {
 public:
  Multiply(const Link& link, Array a, Array b, const Shape& out)
      : a_(std::move(a)), b_(std::move(b)), one_a_row_(b_.shape() != out) {
    Shape rows(out.begin(), out.end() - 1);
    require(a_.shape() == out && (!one_a_row_ || b_.shape() == rows), link,
            "factors of another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Expectation e{.value = widened(a_, b), .slack = Mat::Zero(b.rows, b.cols), .refine = {}};
    if (!one_a_row_) {
      e.value.array() *= widened(b_, b).array();
      return e;
    }
    Mat factors = widened(b_, b.offset / b.cols, 1, b.rows, 1);
    for (Index r = 0; r < b.rows; ++r)  // nothing of a row without a share, be it infinite
      if (factors(r, 0) == 0)
        e.value.row(r).setZero();
      else
        e.value.row(r) *= factors(r, 0);
    return e;
  }

 private:
  Array a_, b_;
  bool one_a_row_;
};

// [batch, pos, head, d_head] turned by tables [prompt, pos, pair], which serve the batch in turn.
// What is not turned is a copy.
class Turn : public Kernel {
 public:
  Turn(const Link& link, Array x, Array cos, Array sin, const Shape& out, const Contract& c)
      : x_(std::move(x)),
        cos_(std::move(cos)),
        sin_(std::move(sin)),
        c_(c),
        pairs_(cos_.size(-1)),
        // Elements of a pair are `apart`, those of the same place in two pairs `step`.
        apart_(link.pairs == RotaryPairs::halves ? pairs_ : 1),
        step_(link.pairs == RotaryPairs::halves ? 1 : 2),
        heads_(out[2]) {
    require(x_.shape() == out && cos_.shape() == sin_.shape() && cos_.size(1) == out[1] &&
                out[0] % cos_.size(0) == 0 && 2 * pairs_ <= out[3],
            link, "the tables do not fit the heads");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Expectation e = exactly(widened(x_, b));
    std::vector<double> cos(static_cast<std::size_t>(pairs_)), sin(cos.size());
    for (Index r = 0; r < b.rows; ++r) {
      std::int64_t row = (b.offset / b.cols + r) / heads_ % (cos_.size(0) * cos_.size(1));
      cos_.widen(row * pairs_, cos);
      sin_.widen(row * pairs_, sin);
      for (std::int64_t i = 0; i < pairs_; ++i) {
        double c = cos[i], s = sin[i];
        double &first = e.value(r, i * step_), &second = e.value(r, i * step_ + apart_);
        double x = first, y = second;
        first = x * c - y * s;
        second = y * c + x * s;
        e.slack(r, i * step_) = turn_slack(c_, std::abs(x * c) + std::abs(y * s));
        e.slack(r, i * step_ + apart_) = turn_slack(c_, std::abs(y * c) + std::abs(x * s));
      }
    }
    return e;
  }

 private:
  Array x_, cos_, sin_;
  Contract c_;
  std::int64_t pairs_, apart_, step_, heads_;
};

class Softcap : public Kernel {
 public:
  Softcap(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)), c_(c), cap_(link.scalar) {
    require(x_.shape() == out && cap_ > 0, link, "an input of another shape, or no cap");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Expectation e = exactly(widened(x_, b));
    for (Index i = 0; i < e.value.size(); ++i) {
      double& value = e.value.data()[i];
      if (value == -kInfinity) continue;  // a masked score stays masked
      double x = value;
      value = cap_ * std::tanh(x / cap_);
      e.slack.data()[i] = softcap_slack(c_, x, value);
    }
    return e;
  }

 private:
  Array x_;
  Contract c_;
  double cap_;
};

// Whether a norm may run over so many elements: the last axis, or all heads of [.., head, d_head].
bool is_row(std::int64_t width, const Shape& shape) {
  return width == shape.back() ||
         (shape.size() == 4 && width == shape.back() * shape[shape.size() - 2]);
}

class NormScale : public Kernel {
 public:
  NormScale(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)),
        c_(c),
        eps_(link.scalar),
        centres_(link.centres),
        d_(x_.numel() / numel(out)) {
    require(numel(out) * d_ == x_.numel() && is_row(d_, x_.shape()), link,
            "one scale a row is needed");
    std::int64_t rows = numel(out), step = std::max<std::int64_t>(1, kBlockElements / d_);
    for (std::int64_t r = 0; r < rows; r += step)
      blocks_.push_back({r, 1, std::min(step, rows - r), 1});
  }
  Expectation expect(const Block& b) const override {
    Mat rows = widened(x_, b.offset * d_, d_, b.rows, d_);
    Expectation e{.value = Mat(b.rows, 1), .slack = Mat(b.rows, 1), .refine = {}};
    for (Index r = 0; r < b.rows; ++r) {
      auto x = rows.row(r).array();
      double mean = centres_ ? x.mean() : 0, mean_abs = centres_ ? x.abs().mean() : 0;
      e.value(r, 0) = std::sqrt((x - mean).square().mean() + eps_);
      double before = (x.abs() + mean_abs).square().mean();
      e.slack(r, 0) = norm_scale_slack(c_, std::sqrt(before + eps_));
    }
    return e;
  }

 private:
  Array x_;
  Contract c_;
  double eps_;
  bool centres_;
  std::int64_t d_;
};

class Normalize : public Kernel {
 public:
  Normalize(const Link& link, Array x, Array scale, const Shape& out, const Contract& c)
      : x_(std::move(x)), scale_(std::move(scale)), c_(c), centres_(link.centres) {
    std::int64_t d = x_.numel() / scale_.numel();
    require(x_.shape() == out && scale_.numel() * d == x_.numel() && is_row(d, out), link,
            "one scale a row is needed");
    blocks_ = row_blocks({scale_.numel(), d});
  }
  Expectation expect(const Block& b) const override {
    Mat rows = widened(x_, b), scales = widened(scale_, b.offset / b.cols, 1, b.rows, 1);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    for (Index r = 0; r < b.rows; ++r) {
      auto x = rows.row(r).array();
      double mean = centres_ ? x.mean() : 0, mean_abs = centres_ ? x.abs().mean() : 0,
             scale = scales(r, 0);
      e.value.row(r) = (x - mean) / scale;
      // Linear in the magnitude, as most slacks are.
      e.slack.row(r) = (x.abs() + mean_abs) * normalize_slack(c_, 1 / std::abs(scale));
    }
    return e;
  }

 private:
  Array x_, scale_;
  Contract c_;
  bool centres_;
};

class Affine : public Kernel {
 public:
  Affine(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)),
        w_(link.weight->storage.to_doubles()),
        b_(link.bias ? link.bias->storage.to_doubles() : std::vector<double>(w_.size())),
        c_(c) {
    auto width = static_cast<std::int64_t>(w_.size());
    require(x_.shape() == out && is_row(width, out) && w_.size() == b_.size(), link,
            "a weight and a bias a column are needed");
    for (double w : w_) sizes_.push_back(std::abs(w) + std::abs(link.offset));
    for (double& w : w_) w += link.offset;
    blocks_ = row_blocks({numel(out) / width, width});
  }
  Expectation expect(const Block& b) const override {
    Mat x = widened(x_, b);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    Eigen::Map<const Eigen::RowVectorXd> w(w_.data(), b.cols), bias(b_.data(), b.cols),
        sizes(sizes_.data(), b.cols);
    for (Index r = 0; r < b.rows; ++r) {
      e.value.row(r) = x.row(r).cwiseProduct(w) + bias;
      e.slack.row(r) = x.row(r).cwiseAbs().cwiseProduct(sizes) * affine_slack(c_, 1);
    }
    return e;
  }

 private:
  Array x_;
  std::vector<double> w_, b_, sizes_;  // sizes: |w| and |offset|, which may cancel
  Contract c_;
};

// weight_block of a weight whose outputs are rows (M column-major) or columns (M row-major).
template <class M>
M weight_as_stored(const Matrix& w, std::int64_t row, std::int64_t rows, std::int64_t first,
                   std::int64_t count) {
  std::int64_t leading = w.storage.size(-1), output = w.first_output + first;
  return M::IsRowMajor ? widened<M>(w.storage, row * leading + output, leading, rows, count)
                       : widened<M>(w.storage, output * leading + row, leading, count, rows);
}

// Each element with 11 significant bits, to nearest (Veltkamp's splitting, 53 = 42 + 11).
constexpr auto as_tf32 = [](const auto& x) {
  auto scaled = (x * (0x1p42 + 1)).eval();
  return (scaled - (scaled - x)).eval();
};

// Lower bounds of the root of sum x^2 w^2 for every pair of a row x and a column w. Such roots
// themselves would cost a second product. Two bounds are cheap, and almost every error is below
// what even they allow: |sum x w| / sqrt(K), by Cauchy-Schwarz, and the same root over every fourth
// term, summed in float32 (fewer terms: too many to refine).
class LeastRoots {
 public:
  explicit LeastRoots(const LeftRows<double>& x) : x_(some_squares(x)), terms_(x.terms()) {}

  /// Replaces the sums of x w in `roots`; `added` (b^2 of each column) belongs to the squares.
  void replace(Mat& roots, const RightColumns<double>& w, const Eigen::RowVectorXd& added,
               std::span<const Extent> extents = {}) const {
    RowMajor<float> squares(roots.rows(), w.runs());
    if (!extents.empty()) squares.setZero();
    std::vector<Extent> some(extents.begin(), extents.end());
    for (Extent& e : some) e.terms = x_.terms();
    multiply(x_, some_squares(w), squares, some);
    double least = least_sum(terms_), by_value = 1 / std::sqrt(static_cast<double>(terms_) + 1);
    Eigen::ArrayXd root(w.runs());
    for (Index r = 0; r < roots.rows(); ++r) {
      for (Index j = 0; j < w.runs(); ++j) root[j] = least * squares(r, j) + added[j];
      auto row = roots.row(r).head(w.runs()).array();
      row = root.transpose().sqrt().max(row.abs() * by_value);
    }
  }

 private:
  LeftRows<float> x_;
  Index terms_;
};

// x W + b for a block of columns, in the three forms in which a transformer needs it.
class Product : public Kernel {
 public:
  enum class Form { whole, per_head_input, per_head_rows };

  Product(const Link& link, Array x, const Shape& out, const Contract& c, Form form)
      : x_(std::move(x)), w_(*link.weight), bias_(link.bias), c_(c), form_(form) {
    heads_ = form == Form::whole ? 1 : out[out.size() - 2];
    terms_ = form == Form::per_head_rows ? w_.in / heads_ : w_.in;
    width_ = form == Form::per_head_input ? w_.out / heads_ : w_.out;
    rows_ = numel(out) / (heads_ * width_);
    require(x_.numel() == rows_ * terms_ * (form == Form::whole ? 1 : heads_) &&
                numel(out) == rows_ * heads_ * width_,
            link, "the input does not fit the weight");
    if (form == Form::whole) whole_ = input_of(0);
    // Blocks of 768 KiB of weights stay near while all rows pass over them.
    constexpr std::int64_t kWeights = 98304;
    std::int64_t step = std::clamp<std::int64_t>(kWeights / terms_, 2 * kTileColumns, 256) /
                        kTileColumns * kTileColumns;
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t j = 0; j < width_; j += step)
        blocks_.push_back({h * width_ + j, heads_ * width_, rows_, std::min(step, width_ - j)});
  }

  Expectation expect(const Block& b) const override {
    auto [in, w, bias] = operands_of(b);
    Eigen::VectorXd w_square = w->squared_norms();

    Expectation e{.value = Mat(rows_, b.cols), .slack = {}, .refine = {}};
    multiply(in->x, *w, e.value);
    if (!c_.narrow) e.slack = e.value;  // becomes the roots
    e.value.rowwise() += bias;
    e.expected_square =
        expected_square(c_, terms_, in->square.sum() * w_square.sum(), e.value.squaredNorm());
    if (c_.u_x > 0) {
      Mat declared(rows_, b.cols);
      multiply(in->x.map(as_tf32), w->map(as_tf32), declared);
      e.expected_square +=
          expected_operand_square(c_, (declared.rowwise() + bias - e.value).squaredNorm());
    }
    if (c_.narrow)
      narrow_slack(e, in->square, w_square, bias);
    else
      wide_slack(e, in, w, w_square, bias);
    return e;
  }

  Mat value(const Block& b) const override {
    auto [in, w, bias] = operands_of(b);
    Mat y(rows_, b.cols);
    multiply(in->x, *w, y);
    y.rowwise() += bias;
    return y;
  }

 private:
  struct Input {
    LeftRows<double> x;
    Eigen::VectorXd square;  // of each row: the sum of squares
    LeastRoots roots;
  };
  using Columns = std::shared_ptr<const RightColumns<double>>;
  struct Operands {
    std::shared_ptr<const Input> in;
    Columns w;
    Eigen::RowVectorXd bias;
  };

  Operands operands_of(const Block& b) const {
    std::int64_t h = b.offset / width_, first = b.offset % width_;
    std::int64_t row = form_ == Form::per_head_rows ? h * terms_ : 0;
    std::int64_t column = form_ == Form::per_head_input ? b.offset : first;
    Eigen::RowVectorXd bias = Eigen::RowVectorXd::Zero(b.cols);
    if (bias_)
      bias_->storage.widen(bias_->first + column, {bias.data(), static_cast<std::size_t>(b.cols)});
    return {form_ == Form::whole ? whole_ : input_of(h),
            std::make_shared<const RightColumns<double>>(weight_columns(row, column, b.cols)),
            std::move(bias)};
  }

  std::shared_ptr<const Input> input_of(std::int64_t h) const {
    auto x = pack_runs<Side::left>(x_, h * terms_, x_.numel() / rows_, rows_, terms_);
    Eigen::VectorXd square = x.squared_norms();
    LeastRoots roots(x);
    return std::make_shared<const Input>(Input{std::move(x), std::move(square), std::move(roots)});
  }
  RightColumns<double> weight_columns(std::int64_t row, std::int64_t first, Index count) const {
    std::int64_t leading = w_.storage.size(-1), output = w_.first_output + first;
    return w_.outputs_are_rows
               ? pack_runs<Side::right>(w_.storage, output * leading + row, leading, count, terms_)
               : pack_across<Side::right>(w_.storage, row * leading + output, leading, count,
                                          terms_);
  }

  void narrow_slack(Expectation& e, const Eigen::VectorXd& x_square,
                    const Eigen::VectorXd& w_square, const Eigen::RowVectorXd& bias) const {
    Mat norms = x_square * w_square.transpose();
    e.slack = (norms.cwiseSqrt().rowwise() + bias.cwiseAbs()) *
              narrow_product_slack(c_, terms_, 1);  // linear in the magnitude
  }

  void wide_slack(Expectation& e, const std::shared_ptr<const Input>& in, const Columns& w,
                  const Eigen::VectorXd& w_square, const Eigen::RowVectorXd& bias) const {
    in->roots.replace(e.slack, *w, bias.cwiseAbs2());
    // Linear in the root and in |y|: two calls a block instead of one an element.
    double walk = product_slack(c_, terms_, 1, 0), run = product_slack(c_, terms_, 0, 1);
    e.slack = e.slack * walk + e.value.cwiseAbs() * run;
    if (c_.u_x > 0)
      e.slack += (in->square * w_square.transpose()).cwiseSqrt() * operand_slack(c_, 1);
    e.refine = [this, in, bias, w](Index r, Index j) {
      Eigen::ArrayXd products = in->x.run(r) * w->run(j);
      double rms = std::sqrt(products.square().sum() + bias[j] * bias[j]);
      return product_slack(c_, terms_, rms, products.sum() + bias[j]) +
             operand_slack(c_, std::sqrt(in->square[r]) * w->run(j).matrix().norm());
    };
  }

  Array x_;
  Matrix w_;
  std::optional<Vector> bias_;
  Contract c_;
  Form form_;
  std::int64_t heads_, terms_, width_, rows_;
  std::shared_ptr<const Input> whole_;
};

class SumHeads : public Kernel {
 public:
  SumHeads(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)), bias_(link.bias->storage.to_doubles()), c_(c), heads_(x_.size(-2)) {
    require(x_.numel() == numel(out) * heads_, link, "one result a head is needed");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Eigen::Map<const Eigen::RowVectorXd> bias(bias_.data(), b.cols);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    for (Index r = 0; r < b.rows; ++r) {
      Mat x = widened(x_, (b.offset / b.cols + r) * heads_ * b.cols, b.cols, heads_, b.cols);
      e.value.row(r) = x.colwise().sum() + bias;
      e.slack.row(r) = x.cwiseAbs().colwise().sum() + bias.cwiseAbs();
    }
    e.slack *= sum_slack(c_, heads_ + 1, 1);
    return e;
  }

 private:
  Array x_;
  std::vector<double> bias_;
  Contract c_;
  std::int64_t heads_;
};

// Rows [first, first + count) of one head of [batch, pos, head, d_head].
template <Side side>
Packed<double, side> head_rows(const Array& x, std::int64_t prompt, std::int64_t head,
                               std::int64_t first, std::int64_t count) {
  std::int64_t pos = x.size(1), heads = x.size(2), d = x.size(3);
  return pack_runs<side>(x, ((prompt * pos + first) * heads + head) * d, heads * d, count, d);
}

class Scores : public Kernel {
 public:
  Scores(const Link& link, Array q, Array k, const Shape& out, const Contract& c)
      : q_(std::move(q)),
        k_(std::move(k)),
        c_(c),
        link_(link),
        divisor_(link.scalar),
        queries_(out[2]),
        heads_(out[1]),
        terms_(q_.size(-1)) {
    require(q_.size(1) == out[2] && k_.size(1) == out[3] && q_.size(2) == heads_ &&
                heads_ % k_.size(2) == 0 && q_.size(3) == k_.size(3),
            link, "queries and keys do not fit the scores");
    for (std::int64_t h = 0; h < out[0] * heads_; ++h)
      for (std::int64_t i = 0; i < queries_; i += kBlockQueries)
        blocks_.push_back(
            {(h * queries_ + i) * out[3], out[3], std::min(kBlockQueries, queries_ - i), out[3]});
  }

  Expectation expect(const Block& b) const override {
    std::int64_t row = b.offset / b.cols, first = row % queries_, head = row / queries_ % heads_,
                 prompt = row / queries_ / heads_;
    auto seen = [=, this, cols = b.cols](Index i) {  // those before it, less the hidden ones
      return link_.seen(prompt, i + first, cols).end;
    };
    auto hidden = [=, this, cols = b.cols](Index i) {
      return link_.seen(prompt, i + first, cols).begin;
    };
    Operands in{
        .q = head_rows<Side::left>(q_, prompt, head, first, b.rows),
        .k = head_rows<Side::right>(k_, prompt, head / (heads_ / k_.size(2)), 0, seen(b.rows - 1))};
    std::vector<Extent> extents;  // keys beyond the last query's of a tile are hidden
    for (Index i = kTileRows - 1; i < b.rows + kTileRows - 1; i += kTileRows)
      extents.push_back({terms_, std::min(seen(i), in.k.runs())});

    Expectation e{.value = Mat::Zero(b.rows, b.cols), .slack = Mat(), .refine = {}};
    multiply(in.q, in.k, e.value, extents);
    e.slack = e.value;
    e.value.leftCols(in.k.runs()) /= divisor_;
    set_slack(e, in, extents);
    for (Index i = 0; i < b.rows; ++i) {
      e.value.row(i).tail(b.cols - seen(i)).setConstant(-kInfinity);
      e.slack.row(i).tail(b.cols - seen(i)).setConstant(kExact);
      e.value.row(i).head(hidden(i)).setConstant(-kInfinity);
      e.slack.row(i).head(hidden(i)).setConstant(kExact);
      Index count = seen(i) - hidden(i);
      double squares =
          in.q_square[i] * in.k_square.segment(hidden(i), count).sum() / (divisor_ * divisor_);
      e.expected_square += expected_square(c_, terms_, squares,
                                           e.value.row(i).segment(hidden(i), count).squaredNorm());
    }
    if (c_.u_x > 0) declare_operands(e, in, hidden, seen);
    if (!c_.narrow)
      e.refine = [=, this, in = std::make_shared<const Operands>(std::move(in))](Index i, Index j) {
        return j >= hidden(i) && j < seen(i) ? slack_of(*in, i, j) : kExact;
      };
    return e;
  }

 private:
  struct Operands {
    LeftRows<double> q;
    RightColumns<double> k;
    Eigen::VectorXd q_square = q.squared_norms(), k_square = k.squared_norms();
  };

  // From the sums that e.slack holds. Both slacks are linear: two calls a block instead of one an
  // element.
  void set_slack(Expectation& e, const Operands& in, std::span<const Extent> extents) const {
    if (c_.narrow) {
      e.slack.leftCols(in.k.runs()) = (in.q_square * in.k_square.transpose()).cwiseSqrt();
      e.slack *= narrow_product_slack(c_, terms_, 1) / divisor_;
      return;
    }
    LeastRoots(in.q).replace(e.slack, in.k, Eigen::RowVectorXd::Zero(in.k.runs()), extents);
    auto slack = e.slack.leftCols(in.k.runs());
    slack = slack * (scores_slack(c_, terms_, 1, 0) / divisor_) +
            e.value.leftCols(in.k.runs()).cwiseAbs() * scores_slack(c_, terms_, 0, 1);
  }
  double slack_of(const Operands& in, Index i, Index j) const {
    Eigen::ArrayXd products = in.q.run(i) * in.k.run(j);
    double rms = std::sqrt(products.square().sum()) / divisor_;
    return scores_slack(c_, terms_, rms, products.sum() / divisor_) +
           operand_slack(c_, std::sqrt(in.q_square[i] * in.k_square[j]) / divisor_);
  }
  template <class Hidden, class Seen>
  void declare_operands(Expectation& e, const Operands& in, const Hidden& hidden,
                        const Seen& seen) const {
    Mat declared(e.value.rows(), e.value.cols());
    multiply(in.q.map(as_tf32), in.k.map(as_tf32), declared);
    for (Index i = 0; i < declared.rows(); ++i) {
      Index from = hidden(i), count = seen(i) - from;
      auto error =
          declared.row(i).segment(from, count) / divisor_ - e.value.row(i).segment(from, count);
      e.expected_square += expected_operand_square(c_, error.squaredNorm());
      e.slack.row(i).segment(from, count) +=
          (in.q_square[i] * in.k_square.segment(from, count)).cwiseSqrt().transpose() *
          (operand_slack(c_, 1) / divisor_);
    }
  }

  Array q_, k_;
  Contract c_;
  Link link_;
  double divisor_;
  std::int64_t queries_, heads_, terms_;
};

class Softmax : public Kernel {
 public:
  Softmax(const Link& link, Array s, const Shape& out, const Contract& c)
      : s_(std::move(s)), c_(c) {
    require(s_.shape() == out, link, "scores of another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat scores = widened(s_, b);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    std::vector<double> below(static_cast<std::size_t>(b.cols));
    for (Index i = 0; i < b.rows; ++i) {
      auto s = scores.row(i), p = e.value.row(i), slack = e.slack.row(i);
      Index seen = b.cols;  // what is beyond is masked, as half of causal attention is
      while (seen > 0 && s[seen - 1] == -kInfinity) --seen;
      p.tail(b.cols - seen).setZero();
      slack.tail(b.cols - seen).setConstant(kExact);
      if (seen > 0) set_row(s.head(seen), p.head(seen), slack.head(seen), below);
    }
    return e;
  }

 private:
  template <class Row>
  void set_row(Row s, Row p, Row slack, std::span<double> below) const {
    below = below.first(static_cast<std::size_t>(s.size()));
    Eigen::Map<Eigen::RowVectorXd> distance(below.data(), s.size());
    distance = s.maxCoeff() - s.array();
    p = (-distance.array()).exp();
    p /= p.sum();
    softmax_slacks(c_, {p.data(), below.size()}, below, {slack.data(), below.size()});
    for (std::size_t j = 0; j < below.size(); ++j) {
      double score = s.data()[j], weight = p.data()[j], allowed = slack.data()[j];
      p.data()[j] = score == -kInfinity ? 0 : weight;
      slack.data()[j] = score == -kInfinity ? kExact : allowed;
    }
  }

  Array s_;
  Contract c_;
};

// How many of a row come before element j when it falls, of equals the first: a NaN has no place.
template <class Row>
Index place_in(const Row& row, Index j) {
  if (row.hasNaN()) return row.size();
  return (row.array() > row[j]).count() + (row.head(j).array() == row[j]).count();
}

class Choose : public Kernel {
 public:
  Choose(const Link& link, Array x, const Shape& out) : x_(std::move(x)) {
    Shape rest(out.begin(), out.end() - 1), given(x_.shape().begin(), x_.shape().end() - 1);
    require(given == rest && out.back() <= x_.size(-1), link, "fewer than are chosen");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    std::int64_t width = x_.size(-1);
    Mat rows = widened(x_, b.offset / b.cols * width, width, b.rows, width);
    Mat value = Mat::Constant(b.rows, b.cols, kNan);
    for (Index r = 0; r < b.rows; ++r)
      for (Index j = 0; j < width; ++j)
        if (Index place = place_in(rows.row(r), j); place < b.cols)
          value(r, place) = static_cast<double>(j);
    return exactly(std::move(value));
  }

 private:
  Array x_;
};

class Share : public Kernel {
 public:
  Share(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)), c_(c), chosen_(link.chosen) {
    require(x_.shape() == out && chosen_ >= 1 && chosen_ <= out.back(), link,
            "an input of another shape, or nothing chosen");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat rows = widened(x_, b);
    Expectation e = exactly(Mat::Zero(b.rows, b.cols));
    for (Index r = 0; r < b.rows; ++r) {
      auto x = rows.row(r);
      if (x.hasNaN()) e.value.row(r).setConstant(kNan);
      Eigen::RowVectorXd counts(b.cols);
      for (Index j = 0; j < b.cols; ++j) counts[j] = place_in(x, j) < chosen_ ? 1 : 0;
      double sum = x.dot(counts), sizes = x.cwiseAbs().dot(counts) / std::abs(sum);
      for (Index j = 0; j < b.cols; ++j) {
        if (counts[j] == 0) continue;
        e.value(r, j) = x[j] / sum;
        e.slack(r, j) = share_slack(c_, chosen_, sizes, e.value(r, j));
      }
    }
    return e;
  }

 private:
  Array x_;
  Contract c_;
  std::int64_t chosen_;
};

class Mix : public Kernel {
 public:
  Mix(const Link& link, Array pattern, Array v, const Shape& out, const Contract& c)
      : p_(std::move(pattern)), v_(std::move(v)), c_(c), queries_(out[1]), heads_(out[2]) {
    require(p_.size(1) == heads_ && p_.size(2) == out[1] && p_.size(3) == v_.size(1) &&
                heads_ % v_.size(2) == 0,
            link, "pattern and values do not fit z");
    for (std::int64_t b = 0; b < out[0]; ++b)
      for (std::int64_t h = 0; h < heads_; ++h)
        for (std::int64_t i = 0; i < queries_; i += kBlockQueries)
          blocks_.push_back({((b * queries_ + i) * heads_ + h) * out[3], heads_ * out[3],
                             std::min(kBlockQueries, queries_ - i), out[3]});
  }

  Expectation expect(const Block& b) const override {
    std::int64_t head = b.offset / b.cols % heads_, row = b.offset / b.row_stride,
                 first = row % queries_, prompt = row / queries_, keys = p_.size(3);
    auto p = pack_runs<Side::left>(p_, ((prompt * heads_ + head) * queries_ + first) * keys, keys,
                                   b.rows, keys);
    std::int64_t v_heads = v_.size(2), v_head = head / (heads_ / v_heads);
    auto v = pack_across<Side::right>(v_, (prompt * keys * v_heads + v_head) * b.cols,
                                      v_heads * b.cols, b.cols, keys);
    auto extents = nonzero(p, b.cols);
    auto abs = [](const auto& x) { return x.abs(); };
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    multiply(p, v, e.value, extents);
    multiply(p.map(abs), v.map(abs), e.slack, extents);
    // Weights of one sign: the partial sums of p |v| stand for those of p v.
    e.expected_square = expected_square(c_, keys, e.slack.squaredNorm(), e.slack.squaredNorm());
    e.slack *= mix_slack(c_, keys, 1);
    if (c_.u_x > 0) {
      Mat declared(b.rows, b.cols);
      multiply(p.map(as_tf32), v.map(as_tf32), declared);
      e.expected_square += expected_operand_square(c_, (declared - e.value).squaredNorm());
      e.slack +=
          (p.squared_norms() * v.squared_norms().transpose()).cwiseSqrt() * operand_slack(c_, 1);
    }
    return e;
  }

 private:
  // Up to the last key that a tile's queries look at: half of causal attention is zeros.
  static std::vector<Extent> nonzero(const LeftRows<double>& p, Index columns) {
    std::vector<Extent> extents;
    for (Index g = 0; g < p.groups(); ++g) {
      auto weights = p.terms_of_group(g);
      Index terms = p.terms();
      while (terms > 0 && (weights.col(terms - 1) == 0).all()) --terms;
      extents.push_back({terms, columns});
    }
    return extents;
  }

  Array p_, v_;
  Contract c_;
  std::int64_t queries_, heads_;
};

class Activate : public Kernel {
 public:
  Activate(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)), c_(c), kind_(link.activation) {
    require(x_.shape() == out, link, "an input of another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat x = widened(x_, b);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    auto in = x.array();
    switch (kind_) {
      case Activation::gelu_tanh:  // tanh u = 1 - 2 / (1 + exp 2u): vectorised, absolute error
                                   // 2^-52
        e.value =
            in * (1 - 1 / (1 + (2 * std::sqrt(2 / M_PI) * (in + 0.044715 * in.cube())).exp()));
        e.slack = x.cwiseAbs() * gelu_slack(c_, 1);
        break;
      case Activation::gelu_erf:
        e.slack = -x * M_SQRT1_2;
        erfc({e.slack.data(), std::size_t(e.slack.size())},
             {e.value.data(), std::size_t(e.value.size())});
        e.value = 0.5 * in * e.value.array();
        e.slack = x.cwiseAbs() * gelu_slack(c_, 1);
        break;
      case Activation::relu:
        e.value = in.max(0.0);
        e.slack.setConstant(kExact);
        break;
      case Activation::silu:
        e.value = in / (1 + (-in).exp());
        e.slack = in.abs() * silu_slack(c_, 1, 0) +
                  (in * e.value.array()).abs() * (silu_slack(c_, 1, 1) - silu_slack(c_, 1, 0));
        break;
      case Activation::tanh:
        e.value = in.tanh();
        e.slack = e.value.cwiseAbs() * tanh_slack(c_, 1);
        break;
    }
    return e;
  }

 private:
  Array x_;
  Contract c_;
  Activation kind_;
};

// One edit: exactly what was asked for where it was asked for, and nothing changed elsewhere.
class EditKernel : public Kernel {
 public:
  EditKernel(const Link& link, Array before, const Shape& out, const Contract& c)
      : before_(std::move(before)),
        edit_(*link.edit),
        shape_(out),
        c_(c),
        touched_(touched(edit_, out)) {
    require(before_.shape() == out, link, "an input of another shape");
    if (edit_.kind == EditKind::patch || edit_.kind == EditKind::add)
      brought_ = source_values(edit_, out, touched_);
    if (edit_.kind == EditKind::mean) find_means();
    blocks_ = row_blocks(out);
  }
  bool holds(const Block& b, const Array& output) const override {
    auto first = std::ranges::lower_bound(touched_, b.offset);
    bool untouched = first == touched_.end() || *first >= b.offset + b.rows * b.cols;
    return untouched && equal_runs(before_, b.offset, output, b.offset, b.rows * b.cols);
  }
  Expectation expect(const Block& b) const override {
    Expectation e = exactly(widened(before_, b));
    auto first = std::ranges::lower_bound(touched_, b.offset);
    for (auto it = first; it != touched_.end() && *it < b.offset + b.rows * b.cols; ++it)
      write(it - touched_.begin(), e.value.data()[*it - b.offset], e.slack.data()[*it - b.offset]);
    return e;
  }

 private:
  // The n-th touched element.
  void write(std::int64_t n, double& value, double& slack) const {
    switch (edit_.kind) {
      case EditKind::zero:
        value = 0;
        return;
      case EditKind::patch:
        value = round_to(c_.stored, brought_[n]);
        return;
      case EditKind::add:
        value += round_to(c_.stored, edit_.factor * brought_[n]);
        slack = 0;
        return;
      case EditKind::scale:
        value *= edit_.factor;
        slack = scale_slack(c_, value);
        return;
      case EditKind::mean: {
        std::int64_t group = touched_[n] % group_;
        value = mean_[group];
        // Both sides average a source in float64, each in its own order.
        slack = edit_.source.empty() ? sum_slack(c_, count_, mean_abs_[group])
                                     : 2 * static_cast<double>(count_) * 0x1p-53 * mean_abs_[group];
        return;
      }
    }
  }
  // Means over batch, and over position where the site's second axis is one.
  void find_means() {
    const Array& from = edit_.source.empty() ? before_ : edit_.source;
    group_ = numel(shape_) / shape_[0];
    if (info(edit_.site).axes[1] == Axis::pos) group_ /= shape_[1];
    count_ = from.numel() / group_;
    mean_.assign(group_, 0);
    mean_abs_.assign(group_, 0);
    for (std::int64_t i = 0; i < from.numel(); ++i) {
      mean_[i % group_] += from[i] / static_cast<double>(count_);
      mean_abs_[i % group_] += std::abs(from[i]) / static_cast<double>(count_);
    }
  }

  Array before_;
  Edit edit_;
  Shape shape_;
  Contract c_;
  std::vector<std::int64_t> touched_;
  std::vector<double> brought_;  // for each of them, by a patch or an add
  std::int64_t group_ = 0, count_ = 0;
  std::vector<double> mean_, mean_abs_;
};

}  // namespace

Mat weight_block(const Matrix& w, std::int64_t row, std::int64_t rows, std::int64_t first,
                 std::int64_t count) {
  if (w.outputs_are_rows) return weight_as_stored<Eigen::MatrixXd>(w, row, rows, first, count);
  return weight_as_stored<Mat>(w, row, rows, first, count);
}

std::unique_ptr<Kernel> make_kernel(const Link& link, std::vector<Array> in, const Shape& out,
                                    const Contract& c) {
  for (const Array& input : in) require(!input.empty(), link, "an empty input");
  require(numel(out) > 0, link, "an empty output");
  switch (link.op) {
    case Op::given:
    case Op::callback:
      return std::make_unique<Given>(link, out);
    case Op::gather:
      return std::make_unique<Gather>(link, out);
    case Op::table:
      return std::make_unique<Table>(link, out);
    case Op::distances:
      return std::make_unique<Distances>(link, out);
    case Op::add:
      return std::make_unique<Add>(link, std::move(in), out, c);
    case Op::multiply:
      return std::make_unique<Multiply>(link, in.at(0), in.at(1), out);
    case Op::turn:
      return std::make_unique<Turn>(link, in.at(0), in.at(1), in.at(2), out, c);
    case Op::softcap:
      return std::make_unique<Softcap>(link, in.at(0), out, c);
    case Op::copy:
      return std::make_unique<Copy>(link, in.at(0), out);
    case Op::concat:
      return std::make_unique<Concat>(link, in.at(0), out);
    case Op::enter:
      return std::make_unique<Enter>(link, in.at(0), out);
    case Op::select:
      return std::make_unique<Select>(link, in.at(0), out);
    case Op::norm_scale:
      return std::make_unique<NormScale>(link, in.at(0), out, c);
    case Op::normalize:
      return std::make_unique<Normalize>(link, in.at(0), in.at(1), out, c);
    case Op::affine:
      return std::make_unique<Affine>(link, in.at(0), out, c);
    case Op::linear:
      return std::make_unique<Product>(link, in.at(0), out, c, Product::Form::whole);
    case Op::head_linear:
      return std::make_unique<Product>(link, in.at(0), out, c, Product::Form::per_head_input);
    case Op::head_result:
      return std::make_unique<Product>(link, in.at(0), out, c, Product::Form::per_head_rows);
    case Op::scores:
      return std::make_unique<Scores>(link, in.at(0), in.at(1), out, c);
    case Op::softmax:
      return std::make_unique<Softmax>(link, in.at(0), out, c);
    case Op::choose:
      return std::make_unique<Choose>(link, in.at(0), out);
    case Op::share:
      return std::make_unique<Share>(link, in.at(0), out, c);
    case Op::mix:
      return std::make_unique<Mix>(link, in.at(0), in.at(1), out, c);
    case Op::sum_heads:
      return std::make_unique<SumHeads>(link, in.at(0), out, c);
    case Op::activation:
      return std::make_unique<Activate>(link, in.at(0), out, c);
    case Op::edit:
      return std::make_unique<EditKernel>(link, in.at(0), out, c);
  }
  throw std::logic_error("[reference] not an Op");
}

}  // namespace lenscpp
