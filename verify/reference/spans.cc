// Propagation of error bounds, an operation a function.
#include "verify/reference/spans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "verify/reference/ops.h"

namespace lenscpp {
namespace {

// |values| and errors as matrices of `cols` columns; an error that is not given is zero.
Mat matrix(const Array& a, std::int64_t cols) {
  Mat m(a.numel() / cols, cols);
  a.widen(0, {m.data(), static_cast<std::size_t>(a.numel())});
  return m;
}
Mat error_matrix(const Array& error, const Array& value, std::int64_t cols) {
  return error.empty() ? Mat(Mat::Zero(value.numel() / cols, cols)) : matrix(error, cols);
}
Array array_of(const Mat& m, const Shape& shape) {
  MutableArray result(shape, DType::f64);
  result.store(0, {m.data(), static_cast<std::size_t>(m.size())});
  return std::move(result).freeze();
}

// sqrt(mean((x - mean x)^2) + eps) is the norm of a projection of x over sqrt(D): Lipschitz in that
// norm.
Mat norm_scale(const Mat& e) { return e.array().square().rowwise().mean().sqrt(); }

Mat normalize(const Mat& x, const Mat& s, const Mat& e, const Mat& e_s, bool centres) {
  double share = centres ? 1 : 0;
  Eigen::VectorXd mean = share * x.rowwise().mean(), mean_e = share * e.rowwise().mean();
  Mat y = ((x.colwise() - mean).array().colwise() / s.col(0).array()).abs();
  Mat out(x.rows(), x.cols());
  for (Index r = 0; r < x.rows(); ++r)
    for (Index j = 0; j < x.cols(); ++j)
      out(r, j) = (e(r, j) + mean_e[r] + y(r, j) * e_s(r, 0)) /
                  std::max(std::abs(s(r, 0)) - e_s(r, 0), 0.0);
  return out;
}

// |E| |W| for the three forms of a product.
Mat product(const Link& link, const Mat& e, std::int64_t heads, std::int64_t in, std::int64_t out,
            bool head_rows) {
  Mat result(e.rows(), heads * out);
  for (std::int64_t h = 0; h < heads; ++h) {
    Mat w = head_rows ? weight_block(*link.weight, h * in, in, 0, out)
                      : weight_block(*link.weight, 0, in, h * out, out);
    result.middleCols(h * out, out) = e.middleCols(h * in, in) * w.cwiseAbs();
  }
  return result;
}

// Rows of one prompt and head out of [batch, pos, head, d].
Mat head_rows(const Mat& m, const Array& shaped, std::int64_t prompt, std::int64_t head) {
  std::int64_t pos = shaped.size(1), heads = shaped.size(2), d = shaped.size(3);
  Mat rows(pos, d);
  for (Index p = 0; p < pos; ++p)
    rows.row(p) =
        Eigen::Map<const Eigen::RowVectorXd>(m.data() + ((prompt * pos + p) * heads + head) * d, d);
  return rows;
}

// One factor a row.
Array multiply_rows(const std::vector<Array>& in, const Mat& e, const Mat& e_b, const Shape& out) {
  std::int64_t cols = in[0].size(-1);
  Eigen::ArrayXd b = matrix(in[1], 1).cwiseAbs().col(0).array(), e_rows = e_b.col(0).array();
  Mat sizes = matrix(in[0], cols).cwiseAbs();
  Mat result = (e.array().colwise() * (b + e_rows) + sizes.array().colwise() * e_rows).matrix();
  return array_of(result, out);
}

// The elements of a row as they fall, of equals the first.
std::vector<Index> falling(const Eigen::RowVectorXd& x) {
  std::vector<Index> order(static_cast<std::size_t>(x.size()));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](Index a, Index b) { return x[a] > x[b]; });
  return order;
}

// Whether errors may bring one of those from place `to` on before one that stands at `from`.
bool may_pass(const Eigen::RowVectorXd& x, const Eigen::RowVectorXd& e,
              const std::vector<Index>& order, std::size_t from, std::size_t to) {
  for (std::size_t i = to; i < order.size(); ++i)
    if (!(x[order[from]] - e[order[from]] > x[order[i]] + e[order[i]])) return true;
  return false;
}

Mat choose(const Mat& x, const Mat& e, std::int64_t count) {
  Mat result = Mat::Zero(x.rows(), count);
  for (Index r = 0; r < x.rows(); ++r) {
    auto order = falling(x.row(r));
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
      if (may_pass(x.row(r), e.row(r), order, i, i + 1))
        result.row(r).setConstant(static_cast<double>(x.cols() - 1));
  }
  return result;
}

// Of numbers that are not negative, so that a share lies between 0 and 1.
Mat share(const Mat& x, const Mat& e, std::int64_t count) {
  Mat result(x.rows(), x.cols());
  auto chosen = static_cast<std::size_t>(count);
  for (Index r = 0; r < x.rows(); ++r) {
    auto order = falling(x.row(r));
    Eigen::RowVectorXd counts = Eigen::RowVectorXd::Zero(x.cols());
    bool unsure = false;
    for (std::size_t i = 0; i < chosen; ++i) {
      counts[order[i]] = 1;
      unsure |= may_pass(x.row(r), e.row(r), order, i, chosen);
    }
    double sum = x.row(r).dot(counts), e_sum = e.row(r).dot(counts);
    unsure |= !(sum > e_sum);
    for (Index j = 0; j < x.cols(); ++j) {
      double y = counts[j] * x(r, j) / sum,
             moved = counts[j] * (e(r, j) + y * e_sum) / (sum - e_sum);
      result(r, j) = unsure ? std::max(y, 1 - y) : moved;
    }
  }
  return result;
}

// Both elements of a pair, and both tables, reach both.
Array turn(const Link& link, const std::vector<Array>& in, const std::vector<Array>& errors,
           const Shape& out) {
  std::int64_t pairs = in[1].size(-1), heads = out[2], d = out[3];
  Mat value = matrix(in[0], d).cwiseAbs(), e = error_matrix(errors[0], in[0], d), result = e;
  Mat cos = matrix(in[1], pairs).cwiseAbs(), sin = matrix(in[2], pairs).cwiseAbs(),
      e_cos = error_matrix(errors.at(1), in[1], pairs),
      e_sin = error_matrix(errors.at(2), in[2], pairs);
  bool halves = link.pairs == RotaryPairs::halves;
  for (Index r = 0; r < e.rows(); ++r)
    for (Index i = 0; i < pairs; ++i) {
      Index p = r / heads % cos.rows(), a = halves ? i : 2 * i, b = halves ? i + pairs : a + 1;
      auto reach = [&](Index own, Index other) {
        return e(r, own) * cos(p, i) + (value(r, own) + e(r, own)) * e_cos(p, i) +
               e(r, other) * sin(p, i) + (value(r, other) + e(r, other)) * e_sin(p, i);
      };
      result(r, a) = reach(a, b);
      result(r, b) = reach(b, a);
    }
  return array_of(result, out);
}

Array scores(const Link& link, const Array& q, const Array& k, const Mat& e_q, const Mat& e_k,
             const Shape& out) {
  Mat mq = matrix(q, q.size(-1)).cwiseAbs(), mk = matrix(k, k.size(-1)).cwiseAbs();
  MutableArray result(out, DType::f64);
  std::int64_t group = out[1] / k.size(2);
  for (std::int64_t b = 0; b < out[0]; ++b)
    for (std::int64_t h = 0; h < out[1]; ++h) {
      Mat aq = head_rows(mq, q, b, h), ak = head_rows(mk, k, b, h / group);
      Mat bq = head_rows(e_q, q, b, h), bk = head_rows(e_k, k, b, h / group);
      Mat e = (aq * bk.transpose() + bq * (ak + bk).transpose()) / link.scalar;
      for (Index i = 0; i < e.rows(); ++i) {  // masked for certain
        Span seen = link.seen(b, i, e.cols());
        e.row(i).head(seen.begin).setZero();
        e.row(i).tail(e.cols() - seen.end).setZero();
      }
      result.store((b * out[1] + h) * out[2] * out[3],
                   {e.data(), static_cast<std::size_t>(e.size())});
    }
  return std::move(result).freeze();
}

// log p moves by at most e_i + max e, so p by at most p (exp(that) - 1).
Mat softmax(const Mat& s, const Mat& e) {
  Mat out = Mat::Zero(s.rows(), s.cols());
  for (Index i = 0; i < s.rows(); ++i) {
    if (s.row(i).maxCoeff() == -std::numeric_limits<double>::infinity()) continue;  // all masked
    Eigen::RowVectorXd p = (s.row(i).array() - s.row(i).maxCoeff()).exp();
    double sum = p.sum(), worst = e.row(i).maxCoeff();
    for (Index j = 0; j < s.cols(); ++j) out(i, j) = p[j] / sum * std::expm1(e(i, j) + worst);
  }
  return out;
}

Array mix(const Array& pattern, const Array& v, const Mat& e_p, const Mat& e_v, const Shape& out) {
  std::int64_t keys = pattern.size(-1), heads = out[2], d = out[3], group = heads / v.size(2);
  Mat p = matrix(pattern, keys).cwiseAbs(), av = matrix(v, d).cwiseAbs();
  MutableArray result(out, DType::f64);
  for (std::int64_t b = 0; b < out[0]; ++b)
    for (std::int64_t h = 0; h < heads; ++h) {
      std::int64_t first = (b * heads + h) * out[1];
      Mat bv = head_rows(e_v, v, b, h / group), values = head_rows(av, v, b, h / group);
      Mat e = e_p.middleRows(first, out[1]) * (values + bv) + p.middleRows(first, out[1]) * bv;
      for (Index i = 0; i < e.rows(); ++i)
        result.store(((b * out[1] + i) * heads + h) * d,
                     {e.data() + i * d, static_cast<std::size_t>(d)});
    }
  return std::move(result).freeze();
}

double lipschitz(Activation kind) {
  switch (kind) {
    case Activation::gelu_tanh:
    case Activation::gelu_erf:
      return 1.13;
    case Activation::silu:
      return 1.1;
    case Activation::relu:
    case Activation::tanh:
      return 1;
  }
  throw std::logic_error("[spans] not an Activation");
}

}  // namespace

Array propagate(const Link& link, const std::vector<Array>& in, const std::vector<Array>& errors,
                const Shape& out) {
  if (std::ranges::all_of(errors, [](const Array& e) { return e.empty(); })) return {};
  std::int64_t cols = in[0].size(-1);
  Mat e = error_matrix(errors[0], in[0], cols);
  auto second = [&](std::int64_t width) { return error_matrix(errors.at(1), in.at(1), width); };
  switch (link.op) {
    case Op::given:
    case Op::gather:
    case Op::table:
    case Op::distances:
      return {};
    case Op::add: {
      Mat sum = e, other = second(cols);
      for (Index r = 0; r < sum.rows(); ++r) sum.row(r) += other.row(r % other.rows());
      if (in.size() == 3) sum += error_matrix(errors.at(2), in[2], cols);
      return array_of(sum, out);
    }
    case Op::multiply: {
      if (in[1].numel() != in[0].numel()) return multiply_rows(in, e, second(1), out);
      Mat e_b = second(cols), a = matrix(in[0], cols).cwiseAbs(),
          b = matrix(in[1], cols).cwiseAbs();
      return array_of(e.cwiseProduct(b + e_b) + a.cwiseProduct(e_b), out);
    }
    case Op::turn:
      return turn(link, in, errors, out);
    case Op::softcap:
      return array_of(e, out);
    case Op::copy: {
      Mat repeated(numel(out) / cols, cols);
      Index times = repeated.rows() / e.rows();
      for (Index r = 0; r < repeated.rows(); ++r) repeated.row(r) = e.row(r / times);
      return array_of(repeated, out);
    }
    case Op::norm_scale: {
      std::int64_t d = in[0].numel() / numel(out);
      return array_of(norm_scale(error_matrix(errors[0], in[0], d)), out);
    }
    case Op::normalize: {
      std::int64_t d = in[0].numel() / in[1].numel();
      return array_of(normalize(matrix(in[0], d), matrix(in[1], 1),
                                error_matrix(errors[0], in[0], d), second(1), link.centres),
                      out);
    }
    case Op::affine: {
      std::int64_t d = link.weight->out;
      Eigen::RowVectorXd w = matrix(link.weight->storage, d).row(0).array() + link.offset;
      return array_of(error_matrix(errors[0], in[0], d) * w.cwiseAbs().asDiagonal(), out);
    }
    case Op::linear: {
      Mat rows = error_matrix(errors[0], in[0], link.weight->in);
      return array_of(product(link, rows, 1, link.weight->in, link.weight->out, false), out);
    }
    case Op::head_linear: {
      std::int64_t heads = out[out.size() - 2];
      Mat rows = error_matrix(errors[0], in[0], heads * link.weight->in);
      return array_of(product(link, rows, heads, link.weight->in, link.weight->out / heads, false),
                      out);
    }
    case Op::head_result: {
      std::int64_t heads = out[out.size() - 2];
      Mat rows = error_matrix(errors[0], in[0], link.weight->in);
      return array_of(product(link, rows, heads, link.weight->in / heads, link.weight->out, true),
                      out);
    }
    case Op::scores:
      return scores(link, in[0], in[1], e, second(cols), out);
    case Op::softmax:
      return array_of(softmax(matrix(in[0], cols), e), out);
    case Op::choose:
      return array_of(choose(matrix(in[0], cols), e, out.back()), out);
    case Op::share:
      return array_of(share(matrix(in[0], cols), e, link.chosen), out);
    case Op::mix:
      return mix(in[0], in[1], e, second(in[1].size(-1)), out);
    case Op::activation:
      return array_of(lipschitz(link.activation) * e, out);
    case Op::sum_heads: {
      std::int64_t heads = in[0].size(-2);
      Mat sums(e.rows() / heads, cols);
      for (Index r = 0; r < sums.rows(); ++r)
        sums.row(r) = e.middleRows(r * heads, heads).colwise().sum();
      return array_of(sums, out);
    }
    case Op::select: {
      std::int64_t pos = in[0].size(1);
      Mat chosen(out[0], cols);
      for (Index b = 0; b < chosen.rows(); ++b) chosen.row(b) = e.row(b * pos + link.selected(b));
      return array_of(chosen, out);
    }
    case Op::concat:
    case Op::enter:
    case Op::edit:
    case Op::callback:
      throw std::invalid_argument("[spans] " + to_string(link.output) +
                                  ": edits, hooks and base keys cannot stand in a recorded run");
  }
  throw std::logic_error("[spans] not an Op");
}

}  // namespace lenscpp
