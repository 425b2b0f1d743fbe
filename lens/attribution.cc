// Attribution to logits, and the identity that it must satisfy.
#include "lens/attribution.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "hooks/nearest.h"
#include "lens/residual_parts.h"
#include "lens/weight_views.h"
#include "verify/reference/exact.h"

namespace lenscpp {
namespace {

// Eight standard deviations of a sum of independent errors that are bounded one by one (Hoeffding
// 1963: exceeded once in 10^13 rows).
constexpr double kDeviations = 8;

// What the final norm multiplies by and adds, as one row: ones and zeros where it is folded.
Mat final_norm_row(const Weights& w, const Array& vector, double where_folded) {
  Mat row = Mat::Constant(1, w.config.d_model, where_folded);
  if (!vector.empty()) vector.widen(0, {row.data(), static_cast<std::size_t>(w.config.d_model)});
  return row;
}
Mat final_norm_weight(const Weights& w) {
  Mat row = final_norm_row(w, w.ln_final_w, 1);
  if (w.config.norm_adds_one && !w.ln_final_w.empty()) row.array() += 1;
  return row;
}
Mat final_norm_bias(const Weights& w) { return final_norm_row(w, w.ln_final_b, 0); }

// --- a stack's rows ---

struct PickedRows {
  std::vector<std::int64_t> batch;  // of the cache, one a row of prompts
  std::vector<std::int64_t> pos;    // of the cache
  bool batch_axis, pos_axis;        // of the result
};

PickedRows picked(const ResidualParts& reader, const StackRows& rows) {
  PickedRows p{.batch = chosen(reader.where(), "prompt", rows.batch, reader.batch()),
               .pos = reader.pos(),
               .batch_axis = rows.has_batch_dim && !rows.batch.collapses,
               .pos_axis = !rows.pos.collapses};
  if (!rows.has_batch_dim && p.batch.size() != 1)
    throw std::invalid_argument("[" + reader.where() + "] a stack without a batch axis and " +
                                std::to_string(p.batch.size()) +
                                " prompts: choose one with batch_slice");
  return p;
}

// Calls body(component, row of the result, elements) with each row [1, d_model] in float64. The
// stack's batch axis is the cache's; its positions are those already chosen.
template <class Body>
void for_each_row(const ResidualParts& reader, const Array& stack, const StackRows& rows,
                  const PickedRows& p, const Body& body) {
  std::int64_t d = reader.config().d_model;
  auto n_pos = static_cast<std::int64_t>(p.pos.size()),
       n_batch = static_cast<std::int64_t>(p.batch.size());
  Shape needed;
  if (rows.has_batch_dim) needed.push_back(reader.batch());
  if (p.pos_axis) needed.push_back(n_pos);
  needed.push_back(d);
  if (stack.rank() != static_cast<int>(needed.size()) + 1 ||
      Shape(stack.shape().begin() + 1, stack.shape().end()) != needed)
    throw std::invalid_argument("[" + reader.where() + "] a stack of shape " +
                                to_string(stack.shape()) + "; needed: [component, ...] with " +
                                to_string(needed) + " for these slices");
  std::int64_t held = rows.has_batch_dim ? reader.batch() : 1;
  Mat row(1, d);
  for (std::int64_t c = 0; c < stack.size(0); ++c)
    for (std::int64_t b = 0; b < n_batch; ++b)
      for (std::int64_t q = 0; q < n_pos; ++q) {
        std::int64_t from = rows.has_batch_dim ? p.batch[static_cast<std::size_t>(b)] : 0;
        stack.widen(((c * held + from) * n_pos + q) * d, {row.data(), static_cast<std::size_t>(d)});
        body(c, b * n_pos + q, row);
      }
}

// The reader's rows [batch * pos] that a result's rows [picked batch * pos] are.
std::int64_t row_in_cache(const PickedRows& p, std::int64_t row) {
  auto n_pos = static_cast<std::int64_t>(p.pos.size());
  return p.batch[static_cast<std::size_t>(row / n_pos)] * n_pos + row % n_pos;
}

Shape result_shape(const Array& stack, const PickedRows& p, const Shape& last) {
  Shape shape{stack.size(0)};
  if (p.batch_axis) shape.push_back(static_cast<std::int64_t>(p.batch.size()));
  if (p.pos_axis) shape.push_back(static_cast<std::int64_t>(p.pos.size()));
  shape.insert(shape.end(), last.begin(), last.end());
  return shape;
}

// --- tokens ---

// One token a row [batch * pos]. `batched`: a single axis is prompts, else positions.
std::vector<std::int64_t> tokens_of_rows(const ResidualParts& reader, const TokenChoice& tokens,
                                         std::int64_t n_batch, std::int64_t n_pos, bool batched) {
  Shape full{n_batch, n_pos}, one{batched ? n_batch : n_pos};
  if (tokens.dtype() != DType::i64 || (tokens.numel() != 1 && tokens.shape() != full &&
                                       tokens.shape() != one && tokens.rank() != 0))
    throw std::invalid_argument("[" + reader.where() + "] tokens of shape " +
                                to_string(tokens.shape()) + "; allowed: one id, " + to_string(one) +
                                " or " + to_string(full));
  auto ids = tokens.as<std::int64_t>();
  std::vector<std::int64_t> rows;
  for (std::int64_t b = 0; b < n_batch; ++b)
    for (std::int64_t q = 0; q < n_pos; ++q)
      rows.push_back(ids[static_cast<std::size_t>(tokens.numel() == 1      ? 0
                                                  : tokens.shape() == full ? b * n_pos + q
                                                  : batched                ? b
                                                                           : q)]);
  return rows;
}

// Columns of W_U, one a row: [row, d_model] in float64.
Mat directions(const Weights& w, const std::vector<std::int64_t>& tokens) {
  Array columns = residual_directions(w, tokens);
  Mat rows(static_cast<Index>(tokens.size()), w.config.d_model);
  columns.widen(0, {rows.data(), static_cast<std::size_t>(rows.size())});
  return rows;
}

Array stored(const Eigen::VectorXd& values, const Shape& shape, DType dtype) {
  return Array::of(std::span<const double>(values.data(), static_cast<std::size_t>(values.size())),
                   shape)
      .to(dtype);
}

// --- the attribution and its bound ---

// A part, and the row of the result that it belongs to.
struct Share {
  Part part;
  std::string label;
  bool ends_sublayer;  // the device stored a residual after it
};

std::vector<Share> shares(const ResidualParts& reader, AttributionUnit unit) {
  const Weights& w = reader.weights();
  std::vector<Share> all;
  auto add = [&](Part part, bool ends, std::optional<std::string> label = {}) {
    std::string own = label.value_or(part.label);
    all.push_back({std::move(part), std::move(own), ends});
  };
  auto embeddings = reader.embeddings();
  for (Part& part : embeddings) add(part, &part == &embeddings.back());
  for (std::int64_t l = 0; l < w.config.n_layers; ++l) {
    std::optional<std::string> block;
    if (unit == AttributionUnit::layer) block = "L" + std::to_string(l);
    if (unit == AttributionUnit::head) {
      for (Part& head : reader.heads(l)) add(std::move(head), false);
      const Array& b_O = w.layers[static_cast<std::size_t>(l)].b_O;
      add(reader.bias(std::to_string(l) + "_b_O", {b_O}), true);
    } else {
      add(reader.attn_out(l), true, block);
    }
    add(reader.mlp_out(l), true, block);
  }
  return all;
}

// How far attn_out may be from the sum of its heads and b_O, element by element.
Mat attn_out_tolerance(const ResidualParts& reader, std::int64_t layer) {
  const Weights& w = reader.weights();
  const LayerWeights& weights = w.layers[static_cast<std::size_t>(layer)];
  bool from_results = reader.edited(Site::result, layer);
  Site source = from_results ? Site::result : Site::z;
  Link link{.op = from_results ? Op::sum_heads : Op::linear,
            .output = {Site::attn_out, layer},
            .inputs = {{source, layer}},
            .bias = Vector{.storage = weights.b_O, .size = w.config.d_model}};
  if (!from_results) link.weight = w.W_O(layer);
  Mat rows = reader.rows_of(source, layer);
  Shape shape = reader.activation(source, layer).shape();
  shape[1] = static_cast<std::int64_t>(reader.pos().size());
  std::span<const double> values(rows.data(), static_cast<std::size_t>(rows.size()));
  Array found = tolerances(link, {Array::of(values, shape)}, {shape[0], shape[1], w.config.d_model},
                           reader.contract(Site::attn_out));
  Mat result(rows.rows(), w.config.d_model);
  found.widen(0, {result.data(), static_cast<std::size_t>(result.size())});
  return result;
}

// Sums squares of the errors that rounding may make on the way from the parts to a logit: each
// bounded by its link's tolerance (bounds.h), carried to the logit by what multiplies it there.
class RoundingBound {
 public:
  // `onto`: what an error of the final residual is multiplied by, [row, d_model].
  RoundingBound(const ResidualParts& reader, Mat onto)
      : reader_(reader),
        w_(reader.weights()),
        onto_(std::move(onto)),
        squares_(Eigen::VectorXd::Zero(onto_.rows())) {}

  // A stored residual: one sum, rounded once.
  void residual(const Mat& x) {
    Contract c = reader_.contract(Site::resid_post);
    add(x.unaryExpr([&](double v) { return tolerance(c, v, 0); }), onto_);
  }
  void sublayer(const Mat& tolerances) { add(tolerances, onto_); }
  // From the final residual to the logits of each row's tokens: normalized, affine, unembedded.
  void unembedding(const Mat& residual, const Eigen::VectorXd& scale,
                   const std::vector<std::vector<std::int64_t>>& tokens, const Mat& difference) {
    Mat weight = final_norm_weight(w_), bias = final_norm_bias(w_);
    Contract c = reader_.contract(Site::ln_final_normalized),
             logits = reader_.contract(Site::unembed_out);
    Mat normalized = centred(residual, w_.config.norm), error = normalized, after = normalized;
    normalized.array().colwise() /= scale.array();
    for (Index r = 0; r < residual.rows(); ++r) {
      double mean = residual.row(r).cwiseAbs().mean();
      for (Index j = 0; j < residual.cols(); ++j) {
        double x = normalized(r, j), y = x * weight(0, j) + bias(0, j);
        error(r, j) =
            tolerance(c, x, normalize_slack(c, (std::abs(residual(r, j)) + mean) / scale(r)));
        after(r, j) =
            w_.ln_final_w.empty() ? 0 : tolerance(c, y, affine_slack(c, x * weight(0, j)));
      }
    }
    add(error, (difference.array().rowwise() * weight.row(0).array()).matrix());
    add(after, difference);
    Mat y = (normalized.array().rowwise() * weight.row(0).array()).matrix().rowwise() + bias.row(0);
    for (const auto& of_rows : tokens) {
      Mat column = directions(w_, of_rows);
      for (Index r = 0; r < y.rows(); ++r) {
        double b = w_.b_U[of_rows[static_cast<std::size_t>(r)]],
               logit = y.row(r).dot(column.row(r)) + b;
        double slack =
            logits.narrow
                ? narrow_product_slack(logits, y.cols(),
                                       y.row(r).norm() * column.row(r).norm() + std::abs(b))
                : product_slack(
                      logits, y.cols(),
                      std::sqrt(y.row(r).cwiseProduct(column.row(r)).squaredNorm() + b * b), logit);
        slack += operand_slack(logits, y.row(r).norm() * column.row(r).norm());
        squares_(r) += std::pow(tolerance(logits, logit, slack), 2);
      }
    }
  }
  Eigen::VectorXd bound() const { return kDeviations * squares_.cwiseSqrt(); }

 private:
  void add(const Mat& tolerances, const Mat& factors) {
    squares_ += tolerances.cwiseProduct(factors).rowwise().squaredNorm();
  }

  const ResidualParts& reader_;
  const Weights& w_;
  Mat onto_;
  Eigen::VectorXd squares_;
};

// logit(answer) - logit(wrong) of the verified logits, one a row.
Eigen::VectorXd logits_of(const ResidualParts& reader,
                          const std::vector<std::vector<std::int64_t>>& tokens) {
  const VerifiedCache& cache = reader.cache();
  std::string name = hook_name(Site::unembed_out, 0);
  bool kept = cache.activations().find(name) != nullptr;
  if (!kept && cache.activations().output().id.site != Site::unembed_out)
    throw std::invalid_argument("[" + reader.where() + "] this run stopped before layer " +
                                std::to_string(cache.record().end_layer) +
                                " and has no logits: leave stop_at_layer out");
  const Array& logits = kept ? cache[name] : cache.output();
  if (logits.size(1) != reader.extent())
    throw std::invalid_argument("[" + reader.where() + "] this run kept " +
                                std::to_string(reader.extent()) + " of " +
                                std::to_string(logits.size(1)) + " positions, but not of its " +
                                name + ": name it in names_filter");
  auto n_pos = static_cast<std::int64_t>(reader.pos().size());
  Eigen::VectorXd difference(reader.rows());
  for (std::int64_t r = 0; r < reader.rows(); ++r) {
    std::int64_t row =
        r / n_pos * reader.extent() + reader.pos()[static_cast<std::size_t>(r % n_pos)];
    auto logit = [&](std::size_t which) {
      return logits[row * logits.size(2) + tokens[which][static_cast<std::size_t>(r)]];
    };
    difference(r) = logit(0) - (tokens.size() > 1 ? logit(1) : 0);
  }
  return difference;
}

void require_identity(const ResidualParts& reader, const Eigen::VectorXd& total,
                      const Eigen::VectorXd& expected, const Eigen::VectorXd& bound) {
  auto n_pos = static_cast<std::int64_t>(reader.pos().size());
  for (Index r = 0; r < total.size(); ++r) {
    if (std::abs(total(r) - expected(r)) <= bound(r)) continue;
    const RunRecord& record = reader.cache().record();
    std::string edits;
    for (const auto& edit : record.plan) edits += " " + edit.value("name", "");
    for (const HookCall& hook : record.hooks) edits += " " + hook.name;
    throw std::invalid_argument(
        "[" + reader.where() + "] prompt " + std::to_string(r / n_pos) + ", position " +
        std::to_string(reader.pos()[static_cast<std::size_t>(r % n_pos)]) + ": the parts sum to " +
        std::to_string(total(r)) + ", but the run's logits give " + std::to_string(expected(r)) +
        "; rounding explains " + std::to_string(bound(r)) +
        (edits.empty() ? ". The run was not edited: please report this"
                       : ". The run was edited at" + edits +
                             ", so that what was written does not sum to what was read"));
  }
}

}  // namespace

Array apply_ln_to_stack(const VerifiedCache& cache, const Array& stack,
                        const LayerNormOptions& options) {
  ResidualParts reader(cache, "apply_ln_to_stack", options.rows.pos);
  require_additive(reader.config(), reader.where());
  std::int64_t layer = reader.up_to(options.layer, options.mlp_input), d = reader.config().d_model;
  bool recompute = options.recompute_ln && layer == reader.config().n_layers;
  Eigen::VectorXd scale;
  if (!recompute) scale = reader.norm_scale(layer, options.mlp_input);
  PickedRows p = picked(reader, options.rows);
  auto rows = static_cast<std::int64_t>(p.batch.size() * p.pos.size());
  std::optional<MutableArray> result;
  for_each_row(reader, stack, options.rows, p, [&](std::int64_t c, std::int64_t r, const Mat& x) {
    if (!result) result.emplace(result_shape(stack, p, {d}), accumulate_type(stack.dtype()));
    Mat y = recompute ? through_final_norm(x, reader.weights())
                      : Mat(centred(x, reader.config().norm) / scale(row_in_cache(p, r)));
    result->store((c * rows + r) * d, {y.data(), static_cast<std::size_t>(d)});
  });
  if (!result)
    return MutableArray(result_shape(stack, p, {d}), accumulate_type(stack.dtype())).freeze();
  return std::move(*result).freeze();
}

Array logit_attrs(const VerifiedCache& cache, const Array& stack, const TokenChoice& tokens,
                  const std::optional<TokenChoice>& wrong, const StackRows& rows) {
  ResidualParts reader(cache, "logit_attrs", rows.pos);
  require_additive(reader.config(), reader.where());
  const Weights& w = reader.weights();
  PickedRows p = picked(reader, rows);
  auto n_batch = static_cast<std::int64_t>(p.batch.size()),
       n_pos = static_cast<std::int64_t>(p.pos.size());
  auto direction = [&](const TokenChoice& ids) {
    return directions(w, tokens_of_rows(reader, ids, n_batch, n_pos, p.batch_axis));
  };
  Mat onto = direction(tokens);
  if (wrong) onto -= direction(*wrong);
  onto.array().rowwise() *= final_norm_weight(w).row(0).array();
  Eigen::VectorXd scale = reader.norm_scale(w.config.n_layers, false);
  MutableArray result(result_shape(stack, p, {}), accumulate_type(stack.dtype()));
  for_each_row(reader, stack, rows, p, [&](std::int64_t c, std::int64_t r, const Mat& x) {
    result.set(c * n_batch * n_pos + r,
               centred(x, w.config.norm).row(0).dot(onto.row(r)) / scale(row_in_cache(p, r)));
  });
  return std::move(result).freeze();
}

std::string_view name_of(AttributionUnit unit) {
  switch (unit) {
    case AttributionUnit::component:
      return "component";
    case AttributionUnit::head:
      return "head";
    case AttributionUnit::layer:
      return "layer";
  }
  throw std::logic_error("[direct_logit_attribution] a unit of no known kind");
}

AttributionUnit attribution_unit_from_name(std::string_view name) {
  for (auto unit : {AttributionUnit::component, AttributionUnit::head, AttributionUnit::layer})
    if (name_of(unit) == name) return unit;
  throw std::invalid_argument("[direct_logit_attribution] unit " + in_quotes(name) +
                              "; allowed: component, head, layer");
}

LogitAttribution direct_logit_attribution(const VerifiedCache& cache, const TokenChoice& answer,
                                          const std::optional<TokenChoice>& wrong,
                                          AttributionUnit unit, const Choice& pos) {
  ResidualParts reader(cache, "direct_logit_attribution", pos);
  if (unit == AttributionUnit::head)
    require_additive_parts(reader.config(), reader.where());
  else
    require_additive(reader.config(), reader.where());
  const Weights& w = reader.weights();
  auto n_pos = static_cast<std::int64_t>(reader.pos().size());
  std::vector<std::vector<std::int64_t>> tokens{
      tokens_of_rows(reader, answer, reader.batch(), n_pos, true)};
  Mat difference = directions(w, tokens[0]);
  Eigen::VectorXd bias(reader.rows());
  for (Index r = 0; r < bias.size(); ++r) bias(r) = w.b_U[tokens[0][static_cast<std::size_t>(r)]];
  if (wrong) {
    tokens.push_back(tokens_of_rows(reader, *wrong, reader.batch(), n_pos, true));
    difference -= directions(w, tokens[1]);
    for (Index r = 0; r < bias.size(); ++r)
      bias(r) -= w.b_U[tokens[1][static_cast<std::size_t>(r)]];
  }
  bias += difference * final_norm_row(w, w.ln_final_b, 0).transpose();

  // Centring is its own transpose, so that the direction is centred once instead of every part.
  Eigen::VectorXd scale = reader.norm_scale(w.config.n_layers, false);
  Mat onto = centred((difference.array().rowwise() * final_norm_weight(w).row(0).array()).matrix(),
                     w.config.norm);
  onto.array().colwise() /= scale.array();

  RoundingBound rounding(reader, onto);
  Mat residual = Mat::Zero(reader.rows(), w.config.d_model);
  std::vector<std::string> labels;
  std::vector<Eigen::VectorXd> values;
  for (const Share& share : shares(reader, unit)) {
    Mat x = share.part.value();
    if (labels.empty() || labels.back() != share.label) {
      labels.push_back(share.label);
      values.emplace_back(Eigen::VectorXd::Zero(reader.rows()));
    }
    values.back() += x.cwiseProduct(onto).rowwise().sum();
    residual += x;
    if (share.ends_sublayer) rounding.residual(residual);
  }
  if (unit == AttributionUnit::head)
    for (std::int64_t l = 0; l < w.config.n_layers; ++l)
      rounding.sublayer(attn_out_tolerance(reader, l));
  rounding.unembedding(residual, scale, tokens, difference);
  labels.emplace_back("bias");
  values.push_back(bias);

  Eigen::VectorXd total = Eigen::VectorXd::Zero(reader.rows()),
                  expected = logits_of(reader, tokens);
  for (const Eigen::VectorXd& value : values) total += value;
  require_identity(reader, total, expected, rounding.bound());
  DType dtype = accumulate_type(w.dtype);
  Shape shape = reader.shape({});
  Eigen::VectorXd all(static_cast<Index>(values.size()) * reader.rows());
  for (std::size_t i = 0; i < values.size(); ++i)
    all.segment(static_cast<Index>(i) * reader.rows(), reader.rows()) = values[i];
  Shape full = shape;
  full.insert(full.begin(), static_cast<std::int64_t>(values.size()));
  return {.unit = unit,
          .labels = std::move(labels),
          .values = stored(all, full, dtype),
          .total = stored(total, shape, dtype),
          .logit_diff = stored(expected, shape, dtype),
          .bound = stored(rounding.bound(), shape, DType::f64)};
}

}  // namespace lenscpp
