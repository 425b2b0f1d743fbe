// The operations in float64. One class an operation, each read beside its line in bounds.h.
#include "verify/reference/ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace lenscpp {
namespace {

constexpr std::int64_t kBlockElements =
    16384;  // 128 KiB of doubles: a block and its slack stay in L2
constexpr double kInfinity = std::numeric_limits<double>::infinity();

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

// One block a prompt and head of [batch, head, query, key].
std::vector<Block> head_blocks(const Shape& shape) {
  std::vector<Block> blocks;
  for (std::int64_t i = 0; i < shape[0] * shape[1]; ++i)
    blocks.push_back({i * shape[2] * shape[3], shape[3], shape[2], shape[3]});
  return blocks;
}

Expectation exactly(Mat value) {
  Mat slack = Mat::Constant(value.rows(), value.cols(), kExact);
  return {.value = std::move(value), .slack = std::move(slack), .refine = {}};
}

// Operations whose value is known to the bit: a copy of what stands elsewhere.
class Given : public Kernel {
 public:
  Given(const Link& link, const Shape& out) : values_(link.given) {
    require(values_.shape() == out, link, "the given values have another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override { return exactly(widened(values_, b)); }

 private:
  Array values_;
};

class Gather : public Kernel {
 public:
  Gather(const Link& link, const Shape& out) : table_(link.weight->storage), ids_(link.given) {
    require(numel(out) == ids_.numel() * table_.size(1), link, "one row a token is needed");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat value(b.rows, b.cols);
    auto ids = ids_.as<std::int64_t>();
    for (Index r = 0; r < b.rows; ++r) {
      std::int64_t id = ids[b.offset / b.cols + r];
      table_.widen(id * b.cols, {value.data() + r * b.cols, static_cast<std::size_t>(b.cols)});
    }
    return exactly(std::move(value));
  }

 private:
  Array table_, ids_;
};

// A copy; each row may be repeated (over heads).
class Copy : public Kernel {
 public:
  Copy(const Link& link, Array in, const Shape& out) : in_(std::move(in)) {
    require(in_.size(-1) == out.back() && numel(out) % in_.numel() == 0, link,
            "a copy of another width");
    repeats_ = numel(out) / in_.numel();
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat value(b.rows, b.cols);
    for (Index r = 0; r < b.rows; ++r)
      in_.widen((b.offset / b.cols + r) / repeats_ * b.cols,
                {value.data() + r * b.cols, static_cast<std::size_t>(b.cols)});
    return exactly(std::move(value));
  }

 private:
  Array in_;
  std::int64_t repeats_;
};

// Along the key axis of [batch, key, kv_head, d_head]: the base's positions, then those computed.
class Concat : public Kernel {
 public:
  Concat(const Link& link, Array in, const Shape& out) : base_(link.given), in_(std::move(in)) {
    require(base_.size(1) + in_.size(1) == out[1], link,
            "base and computed positions do not add up");
    std::int64_t row = out[2] * out[3];
    for (std::int64_t b = 0; b < out[0]; ++b)
      blocks_.push_back({b * out[1] * row, row, out[1], row});
  }
  Expectation expect(const Block& b) const override {
    std::int64_t prompt = b.offset / (b.rows * b.cols), base = base_.size(1),
                 computed = in_.size(1);
    Mat value(b.rows, b.cols);
    value.topRows(base) =
        widened(base_, prompt % base_.size(0) * base * b.cols, b.cols, base, b.cols);
    value.bottomRows(computed) = widened(in_, prompt * computed * b.cols, b.cols, computed, b.cols);
    return exactly(std::move(value));
  }

 private:
  Array base_, in_;
};

// Along the batch: the prompts already there, then those that enter.
class Enter : public Kernel {
 public:
  Enter(const Link& link, Array in, const Shape& out) : in_(std::move(in)), given_(link.given) {
    require(in_.numel() + given_.numel() == numel(out) && given_.size(-1) == out.back(), link,
            "the prompts do not add up");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat value(b.rows, b.cols);
    for (Index r = 0; r < b.rows; ++r) {
      std::int64_t at = b.offset + r * b.cols;
      bool there = at < in_.numel();
      (there ? in_ : given_)
          .widen(there ? at : at - in_.numel(),
                 {value.data() + r * b.cols, static_cast<std::size_t>(b.cols)});
    }
    return exactly(std::move(value));
  }

 private:
  Array in_, given_;
};

// One position of [batch, pos, ...].
class Select : public Kernel {
 public:
  Select(const Link& link, Array in, const Shape& out) : in_(std::move(in)), at_(link.position) {
    require(in_.size(0) == out[0] && at_ >= 0 && at_ < in_.size(1) && out[1] == 1 &&
                in_.numel() == numel(out) * in_.size(1),
            link, "no such position");
    std::int64_t row = numel(out) / out[0];
    for (std::int64_t b = 0; b < out[0]; ++b) blocks_.push_back({b * row, row, 1, row});
  }
  Expectation expect(const Block& b) const override {
    std::int64_t from = (b.offset / b.cols * in_.size(1) + at_) * b.cols;
    return exactly(widened(in_, from, b.cols, 1, b.cols));
  }

 private:
  Array in_;
  std::int64_t at_;
};

class Add : public Kernel {
 public:
  Add(const Link& link, Array a, Array b, const Shape& out) : a_(std::move(a)), b_(std::move(b)) {
    require(a_.shape() == out && b_.shape() == out, link, "summands of another shape");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    return {
        .value = widened(a_, b) + widened(b_, b), .slack = Mat::Zero(b.rows, b.cols), .refine = {}};
  }

 private:
  Array a_, b_;
};

class NormScale : public Kernel {
 public:
  NormScale(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)), c_(c), eps_(link.scalar), d_(x_.size(-1)) {
    require(numel(out) * d_ == x_.numel(), link, "one scale a row is needed");
    std::int64_t rows = numel(out), step = std::max<std::int64_t>(1, kBlockElements / d_);
    for (std::int64_t r = 0; r < rows; r += step)
      blocks_.push_back({r, 1, std::min(step, rows - r), 1});
  }
  Expectation expect(const Block& b) const override {
    Mat x = widened(x_, b.offset * d_, d_, b.rows, d_);
    Eigen::VectorXd mean = x.rowwise().mean(), mean_abs = x.cwiseAbs().rowwise().mean();
    Eigen::VectorXd centred = (x.colwise() - mean).array().square().rowwise().mean();
    Eigen::VectorXd before = (x.cwiseAbs().colwise() + mean_abs).array().square().rowwise().mean();
    Expectation e{.value = (centred.array() + eps_).sqrt(), .slack = Mat(b.rows, 1), .refine = {}};
    for (Index r = 0; r < b.rows; ++r)
      e.slack(r, 0) = norm_scale_slack(c_, std::sqrt(before[r] + eps_));
    return e;
  }

 private:
  Array x_;
  Contract c_;
  double eps_;
  std::int64_t d_;
};

class Normalize : public Kernel {
 public:
  Normalize(const Link& link, Array x, Array scale, const Shape& out, const Contract& c)
      : x_(std::move(x)), scale_(std::move(scale)), c_(c) {
    require(x_.shape() == out && scale_.numel() * out.back() == x_.numel(), link,
            "one scale a row is needed");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat x = widened(x_, b), s = widened(scale_, b.offset / b.cols, 1, b.rows, 1);
    Eigen::VectorXd mean = x.rowwise().mean(), mean_abs = x.cwiseAbs().rowwise().mean();
    Expectation e{.value = (x.colwise() - mean).array().colwise() / s.col(0).array(),
                  .slack = Mat(b.rows, b.cols),
                  .refine = {}};
    e.slack = (x.cwiseAbs().colwise() + mean_abs).array().colwise() / s.col(0).array().abs();
    e.slack *= normalize_slack(c_, 1);  // linear in the magnitude, as most slacks are
    return e;
  }

 private:
  Array x_, scale_;
  Contract c_;
};

class Affine : public Kernel {
 public:
  Affine(const Link& link, Array x, const Shape& out, const Contract& c)
      : x_(std::move(x)),
        w_(link.weight->storage.to_doubles()),
        b_(link.bias->storage.to_doubles()),
        c_(c) {
    require(x_.shape() == out && static_cast<std::int64_t>(w_.size()) == out.back() &&
                w_.size() == b_.size(),
            link, "a weight and a bias a column are needed");
    blocks_ = row_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat product = widened(x_, b);
    product.array().rowwise() *= Eigen::Map<const Eigen::RowVectorXd>(w_.data(), b.cols).array();
    Expectation e{
        .value = product.rowwise() + Eigen::Map<const Eigen::RowVectorXd>(b_.data(), b.cols),
        .slack = std::move(product),
        .refine = {}};
    e.slack = e.slack.cwiseAbs() * affine_slack(c_, 1);
    return e;
  }

 private:
  Array x_;
  std::vector<double> w_, b_;
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
template <class M>
M as_tf32(const M& x) {
  M scaled = x * (0x1p42 + 1);
  return scaled - (scaled - x);
}

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
    // Blocks of 768 KiB of weights stay near while all rows pass over them; multiples of 24, since
    // Eigen's products take so many outputs at a time and what is left over one by one.
    std::int64_t step = std::clamp<std::int64_t>(98304 / terms_, 96, 240) / 24 * 24;
    for (std::int64_t h = 0; h < heads_; ++h)
      for (std::int64_t j = 0; j < width_; j += step)
        blocks_.push_back({h * width_ + j, heads_ * width_, rows_, std::min(step, width_ - j)});
  }

  Expectation expect(const Block& b) const override {
    std::int64_t h = b.offset / width_, first = b.offset % width_;
    auto in = form_ == Form::whole ? whole_ : input_of(h);
    std::int64_t row = form_ == Form::per_head_rows ? h * terms_ : 0;
    std::int64_t column = form_ == Form::per_head_input ? b.offset : first;
    Eigen::RowVectorXd bias = Eigen::RowVectorXd::Zero(b.cols);
    if (bias_)
      bias_->storage.widen(bias_->first + column, {bias.data(), static_cast<std::size_t>(b.cols)});
    // Turning a block would cost as much as multiplying it with few rows.
    if (w_.outputs_are_rows)
      return expect(in, weight_as_stored<Eigen::MatrixXd>(w_, row, terms_, column, b.cols), bias);
    return expect(in, weight_as_stored<Mat>(w_, row, terms_, column, b.cols), bias);
  }

 private:
  static constexpr Index kStride = 4;  // see wide_slack
  auto every() const {
    return Eigen::seqN(Index{0}, (terms_ + kStride - 1) / kStride, Eigen::fix<kStride>);
  }

  struct Input {
    Mat x;                   // [rows and padding, terms]
    Mat some_squares;        // [rows and padding, terms / kStride]
    Eigen::VectorXd square;  // [rows]: sums of squares
  };

  std::shared_ptr<const Input> input_of(std::int64_t h) const {
    Input in{.x = widened(x_, h * terms_, x_.numel() / rows_, rows_, terms_)};
    in.square = in.x.rowwise().squaredNorm();
    // Eigen multiplies four rows at a time, and what is left over one by one: rows of zeros.
    Index padding = (4 - rows_ % 4) % 4;
    in.x.conservativeResize(rows_ + padding, Eigen::NoChange);
    in.x.bottomRows(padding).setZero();
    if (!c_.narrow) in.some_squares = in.x(Eigen::all, every()).array().square();
    return std::make_shared<const Input>(std::move(in));
  }

  Mat without_padding(Mat product) const {
    product.conservativeResize(rows_, Eigen::NoChange);
    return product;
  }

  template <class M>
  Expectation expect(const std::shared_ptr<const Input>& in, M w,
                     const Eigen::RowVectorXd& bias) const {
    Expectation e{.value = without_padding(in->x * w), .slack = {}, .refine = {}};
    e.value.rowwise() += bias;
    e.expected_square =
        expected_square(c_, terms_, in->square.sum() * w.squaredNorm(), e.value.squaredNorm());
    if (c_.u_x > 0) {
      Mat declared = without_padding(as_tf32(in->x) * as_tf32(w));
      e.expected_square +=
          expected_operand_square(c_, (declared.rowwise() + bias - e.value).squaredNorm());
    }
    if (c_.narrow)
      narrow_slack(e, *in, w, bias);
    else
      wide_slack(e, in, std::move(w), bias);
    return e;
  }

  template <class M>
  void narrow_slack(Expectation& e, const Input& in, const M& w,
                    const Eigen::RowVectorXd& bias) const {
    Mat norms = in.square * w.colwise().squaredNorm();
    e.slack = (norms.cwiseSqrt().rowwise() + bias.cwiseAbs()) *
              narrow_product_slack(c_, terms_, 1);  // linear in the magnitude
  }

  // sqrt(sum x^2 w^2 + b^2) for every element would cost a second product. Two lower bounds of it
  // are cheap, and almost every error is below what even they allow: |y| / sqrt(K + 1), by
  // Cauchy-Schwarz, and the same root over every fourth term (fewer: too many to refine).
  template <class M>
  void wide_slack(Expectation& e, const std::shared_ptr<const Input>& in, M w,
                  const Eigen::RowVectorXd& bias) const {
    M some_squares = w(every(), Eigen::all).array().square();
    Mat part = without_padding(in->some_squares * some_squares);
    part.rowwise() += bias.cwiseAbs2();
    double by_value = 1 / std::sqrt(static_cast<double>(terms_) + 1);
    // Linear in the root and in |y|: two calls a block instead of one an element.
    double walk = product_slack(c_, terms_, 1, 0), run = product_slack(c_, terms_, 0, 1);
    auto size = e.value.cwiseAbs();
    e.slack = part.cwiseSqrt().cwiseMax(size * by_value) * walk + size * run;
    if (c_.u_x > 0)
      e.slack += (in->square * w.colwise().squaredNorm()).cwiseSqrt() * operand_slack(c_, 1);
    e.refine = [this, in, bias, w = std::make_shared<const M>(std::move(w))](Index r, Index j) {
      auto products = in->x.row(r).transpose().array() * w->col(j).array();
      double rms = std::sqrt(products.square().sum() + bias[j] * bias[j]);
      return product_slack(c_, terms_, rms, products.sum() + bias[j]) +
             operand_slack(c_, std::sqrt(in->square[r]) * w->col(j).norm());
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

// One head's rows of [batch, pos, head, d_head].
Mat head_rows(const Array& x, std::int64_t prompt, std::int64_t head) {
  std::int64_t pos = x.size(1), heads = x.size(2), d = x.size(3);
  return widened(x, (prompt * pos * heads + head) * d, heads * d, pos, d);
}

class Scores : public Kernel {
 public:
  Scores(const Link& link, Array q, Array k, const Shape& out, const Contract& c)
      : q_(std::move(q)),
        k_(std::move(k)),
        c_(c),
        divisor_(link.scalar),
        first_query_(link.first_query),
        heads_(out[1]) {
    require(q_.size(1) == out[2] && k_.size(1) == out[3] && q_.size(2) == heads_ &&
                heads_ % k_.size(2) == 0 && q_.size(3) == k_.size(3),
            link, "queries and keys do not fit the scores");
    blocks_ = head_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    std::int64_t prompt = b.offset / (b.rows * b.cols) / heads_,
                 head = b.offset / (b.rows * b.cols) % heads_;
    Mat q = head_rows(q_, prompt, head), k = head_rows(k_, prompt, head / (heads_ / k_.size(2)));
    Eigen::VectorXd q_square = q.rowwise().squaredNorm(), k_square = k.rowwise().squaredNorm();
    Expectation e{
        .value = q * k.transpose() / divisor_, .slack = Mat(b.rows, b.cols), .refine = {}};
    Mat square = c_.narrow ? Mat(q_square * k_square.transpose())
                           : Mat(q.cwiseAbs2() * k.cwiseAbs2().transpose());
    // Both slacks are linear: two calls a block instead of one an element.
    double walk =
        c_.narrow ? narrow_product_slack(c_, q.cols(), 1) : scores_slack(c_, q.cols(), 1, 0);
    double run = c_.narrow ? 0 : scores_slack(c_, q.cols(), 0, 1);
    e.slack = square.cwiseSqrt() / divisor_ * walk + e.value.cwiseAbs() * run;
    Mat declared = e.value;
    if (c_.u_x > 0) {
      declared = as_tf32(q) * as_tf32(k).transpose() / divisor_;
      e.slack += (q_square * k_square.transpose()).cwiseSqrt() / divisor_ * operand_slack(c_, 1);
    }
    for (Index i = 0; i < b.rows; ++i) {
      Index seen = std::min<Index>(i + first_query_ + 1, b.cols), hidden = b.cols - seen;
      double squares = q_square[i] * k_square.head(seen).sum() / (divisor_ * divisor_);
      e.expected_square +=
          expected_square(c_, q.cols(), squares, e.value.row(i).head(seen).squaredNorm()) +
          expected_operand_square(
              c_, (declared.row(i).head(seen) - e.value.row(i).head(seen)).squaredNorm());
      e.value.row(i).tail(hidden).setConstant(-kInfinity);
      e.slack.row(i).tail(hidden).setConstant(kExact);
    }
    return e;
  }

 private:
  Array q_, k_;
  Contract c_;
  double divisor_;
  std::int64_t first_query_, heads_;
};

class Softmax : public Kernel {
 public:
  Softmax(const Link& link, Array s, const Shape& out, const Contract& c)
      : s_(std::move(s)), c_(c) {
    require(s_.shape() == out, link, "scores of another shape");
    blocks_ = head_blocks(out);
  }
  Expectation expect(const Block& b) const override {
    Mat s = widened(s_, b);
    Expectation e{.value = Mat(b.rows, b.cols), .slack = Mat(b.rows, b.cols), .refine = {}};
    for (Index i = 0; i < b.rows; ++i) {
      double max = s.row(i).maxCoeff();
      e.value.row(i) = (s.row(i).array() - max).exp();
      e.value.row(i) /= e.value.row(i).sum();
      for (Index j = 0; j < b.cols; ++j) {
        bool masked = s(i, j) == -kInfinity;
        if (masked) e.value(i, j) = 0;
        e.slack(i, j) = masked ? kExact : softmax_slack(c_, e.value(i, j), max - s(i, j));
      }
    }
    return e;
  }

 private:
  Array s_;
  Contract c_;
};

class Mix : public Kernel {
 public:
  Mix(const Link& link, Array pattern, Array v, const Shape& out, const Contract& c)
      : p_(std::move(pattern)), v_(std::move(v)), c_(c), heads_(out[2]) {
    require(p_.size(1) == heads_ && p_.size(2) == out[1] && p_.size(3) == v_.size(1) &&
                heads_ % v_.size(2) == 0,
            link, "pattern and values do not fit z");
    for (std::int64_t b = 0; b < out[0]; ++b)
      for (std::int64_t h = 0; h < heads_; ++h)
        blocks_.push_back({(b * out[1] * heads_ + h) * out[3], heads_ * out[3], out[1], out[3]});
  }
  Expectation expect(const Block& b) const override {
    std::int64_t prompt = b.offset / (b.rows * b.row_stride),
                 head = b.offset % b.row_stride / b.cols;
    std::int64_t keys = p_.size(3);
    Mat p = widened(p_, (prompt * heads_ + head) * b.rows * keys, keys, b.rows, keys);
    Mat v = head_rows(v_, prompt, head / (heads_ / v_.size(2)));
    Expectation e{.value = p * v, .slack = p.cwiseAbs() * v.cwiseAbs(), .refine = {}};
    // Weights of one sign: the partial sums of p |v| stand for those of p v.
    e.expected_square = expected_square(c_, keys, e.slack.squaredNorm(), e.slack.squaredNorm());
    e.slack *= mix_slack(c_, keys, 1);
    if (c_.u_x > 0) {
      e.expected_square +=
          expected_operand_square(c_, (as_tf32(p) * as_tf32(v) - e.value).squaredNorm());
      e.slack += p.rowwise().norm() * v.colwise().norm() * operand_slack(c_, 1);
    }
    return e;
  }

 private:
  Array p_, v_;
  Contract c_;
  std::int64_t heads_;
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
        e.value = x.unaryExpr([](double v) { return 0.5 * v * std::erfc(-v * M_SQRT1_2); });
        e.slack = x.cwiseAbs() * gelu_slack(c_, 1);
        break;
      case Activation::relu:
        e.value = in.max(0.0);
        e.slack.setConstant(kExact);
        break;
      case Activation::silu:
        e.value = in / (1 + (-in).exp());
        e.slack =
            x.binaryExpr(e.value, [this](double v, double y) { return silu_slack(c_, v, y); });
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
    case Op::add:
      return std::make_unique<Add>(link, in.at(0), in.at(1), out);
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
