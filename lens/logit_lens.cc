// The logit lens, by the reference's own float64 operations, one layer at a time.
#include "lens/logit_lens.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "lens/residual_parts.h"
#include "lens/torch_parallel.h"
#include "verify/reference/exact.h"

namespace lenscpp {
namespace {

// Applies operations to arrays of rows [batch, pos, d_model]; ids are only there to be named in
// errors.
class Reader {
 public:
  explicit Reader(const Weights& weights) : w_(weights) {}

  // Through the final norm with its scale recomputed, as TransformerLens's accumulated_resid does.
  Array residual(const Array& x, bool apply_ln) const {
    if (!apply_ln) return unembed(x, true);
    Array scale = run({.op = Op::norm_scale,
                       .output = {Site::ln_final_scale},
                       .scalar = w_.config.norm_eps,
                       .centres = w_.config.norms_centre()},
                      {x}, {x.size(0), x.size(1), 1});
    Array logits = unembed(affine(divide(x, scale), true), true);
    if (!w_.config.logits_softcap) return logits;
    return run({.op = Op::softcap, .output = {Site::logits}, .scalar = *w_.config.logits_softcap},
               {logits}, logits.shape());
  }
  // A contribution to the final residual: the norm is linear once its scale is frozen, biases
  // belong to none.
  Array contribution(const Array& x, const Array& frozen_scale, bool apply_ln) const {
    return unembed(apply_ln ? affine(divide(x, frozen_scale), false) : x, false);
  }

 private:
  Array run(const Link& link, const std::vector<Array>& inputs, const Shape& shape) const {
    return compute(link, inputs, shape, torch_parallel_for);
  }
  Array divide(const Array& x, const Array& scale) const {
    return run({.op = Op::normalize,
                .output = {Site::ln_final_normalized},
                .centres = w_.config.norms_centre()},
               {x, scale}, x.shape());
  }
  Array affine(const Array& x, bool with_bias) const {
    if (w_.ln_final_w.empty()) return x;
    std::int64_t d = w_.config.d_model;
    Array bias =
        with_bias && !w_.ln_final_b.empty() ? w_.ln_final_b : MutableArray({d}, w_.dtype).freeze();
    return run({.op = Op::affine,
                .output = {Site::unembed_in},
                .weight = Matrix{.storage = w_.ln_final_w, .in = 1, .out = d},
                .bias = Vector{.storage = bias, .size = d},
                .offset = w_.config.norm_adds_one ? 1.0 : 0.0},
               {x}, x.shape());
  }
  Array unembed(const Array& x, bool with_bias) const {
    Link link{.op = Op::linear, .output = {Site::unembed_out}, .weight = w_.unembedding()};
    if (with_bias) link.bias = Vector{.storage = w_.b_U, .size = w_.b_U.numel()};
    return run(link, {x}, {x.size(0), x.size(1), w_.config.d_vocab});
  }

  const Weights& w_;
};

// "hook_resid_pre" -> "pre", "hook_attn_out" -> "attn_out".
std::string_view suffix(Site site) {
  switch (site) {
    case Site::resid_pre:
      return "pre";
    case Site::resid_mid:
      return "mid";
    case Site::resid_post:
      return "post";
    case Site::attn_out:
      return "attn_out";
    case Site::mlp_out:
      return "mlp_out";
    default:
      throw std::invalid_argument(
          "[logit_lens] " + std::string(info(site).name) +
          " cannot be unembedded; allowed: resid_pre, resid_mid, resid_post, attn_out, mlp_out");
  }
}

struct Row {
  std::string label, name;
};
std::vector<Row> rows_of(Site site, std::int64_t n_layers) {
  std::vector<Row> rows;
  for (std::int64_t l = 0; l < n_layers; ++l)
    rows.push_back({std::to_string(l) + "_" + std::string(suffix(site)), hook_name(site, l)});
  if (site == Site::resid_pre)
    rows.push_back({"final_post", hook_name(Site::resid_post, n_layers - 1)});
  return rows;
}

std::int64_t resolved(std::string_view what, std::int64_t index, std::int64_t extent) {
  if (index >= -extent && index < extent) return index < 0 ? index + extent : index;
  throw std::out_of_range("[logit_lens] " + std::string(what) + " " + std::to_string(index) +
                          " out of range: there are " + std::to_string(extent) + " (0.." +
                          std::to_string(extent - 1) + ")");
}

// Calls body(row, logits of that row) for every layer, prompt and position.
template <class Body>
void for_each_row(const Array& logits, const Body& body) {
  std::int64_t vocab = logits.size(-1);
  torch_parallel_for(logits.numel() / vocab, [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> row(static_cast<std::size_t>(vocab));
    for (std::int64_t r = begin; r < end; ++r) {
      logits.widen(r * vocab, row);
      body(r, row);
    }
  });
}

void softmax(std::vector<double>& row) {
  double max = *std::ranges::max_element(row), sum = 0;
  for (double& x : row) sum += x = std::exp(x - max);
  for (double& x : row) x /= sum;
}

Shape without_vocab(const Array& logits) {
  return {logits.size(0), logits.size(1), logits.size(2)};
}

}  // namespace

LogitLens logit_lens(const VerifiedCache& cache, const LogitLensOptions& options) {
  const Weights& weights = cache.weights();
  require_additive(weights.config, "logit_lens");
  bool residual = options.site != Site::attn_out && options.site != Site::mlp_out;
  auto rows = rows_of(options.site, weights.config.n_layers);
  Reader reader(weights);
  std::vector<std::string> labels;
  std::optional<MutableArray> logits;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Array& x = cache[rows[i].name];
    Array row =
        residual ? reader.residual(x, options.apply_ln)
                 : reader.contribution(x, options.apply_ln ? cache["ln_final.hook_scale"] : Array(),
                                       options.apply_ln);
    if (!logits)
      logits.emplace(Shape{static_cast<std::int64_t>(rows.size()), x.size(0), x.size(1),
                           weights.config.d_vocab},
                     DType::f32);
    logits->store(static_cast<std::int64_t>(i) * row.numel(), row.as<double>());
    labels.push_back(rows[i].label);
  }
  return LogitLens(std::move(labels), std::move(*logits).freeze(), options.site, options.apply_ln);
}

Array LogitLens::probs() const {
  MutableArray result(logits_.shape(), DType::f32);
  for_each_row(logits_, [&](std::int64_t r, std::vector<double>& row) {
    softmax(row);
    result.store(r * static_cast<std::int64_t>(row.size()), row);
  });
  return std::move(result).freeze();
}

Array LogitLens::rank(std::int64_t token) const {
  token = resolved("token", token, logits_.size(-1));
  MutableArray result(without_vocab(logits_), DType::i64);
  for_each_row(logits_, [&](std::int64_t r, std::vector<double>& row) {
    double own = row[token];
    result.data<std::int64_t>()[r] =
        std::ranges::count_if(row, [own](double x) { return x > own; });
  });
  return std::move(result).freeze();
}

Array LogitLens::entropy() const {
  MutableArray result(without_vocab(logits_), DType::f32);
  for_each_row(logits_, [&](std::int64_t r, std::vector<double>& row) {
    softmax(row);
    double nats = 0;
    for (double p : row) nats -= p > 0 ? p * std::log(p) : 0;
    result.set(r, nats);
  });
  return std::move(result).freeze();
}

std::vector<RankedToken> LogitLens::top_k(std::int64_t layer, std::int64_t batch, std::int64_t pos,
                                          std::int64_t k) const {
  layer = resolved("layer", layer, logits_.size(0));
  batch = resolved("batch", batch, logits_.size(1));
  pos = resolved("pos", pos, logits_.size(2));
  std::int64_t vocab = logits_.size(-1);
  if (k < 1 || k > vocab)
    throw std::out_of_range("[logit_lens] k " + std::to_string(k) +
                            " out of range: the vocabulary has " + std::to_string(vocab) +
                            " tokens");
  std::vector<double> row(static_cast<std::size_t>(vocab));
  logits_.widen(((layer * logits_.size(1) + batch) * logits_.size(2) + pos) * vocab, row);
  std::vector<double> probability = row;
  softmax(probability);
  std::vector<std::int64_t> order(static_cast<std::size_t>(vocab));
  for (std::int64_t i = 0; i < vocab; ++i) order[i] = i;
  std::ranges::partial_sort(order, order.begin() + k, [&](std::int64_t a, std::int64_t b) {
    return row[a] != row[b] ? row[a] > row[b] : a < b;
  });
  std::vector<RankedToken> top;
  for (std::int64_t i = 0; i < k; ++i)
    top.push_back({order[i], row[order[i]], probability[order[i]]});
  return top;
}

}  // namespace lenscpp
