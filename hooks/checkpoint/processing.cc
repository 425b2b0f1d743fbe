// Weight processing. Matrices pass through in rows widened to float64; sums over rows come from a
// first pass over the same rows, so that no whole matrix is ever held in float64.
#include "hooks/checkpoint/processing.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "hooks/checkpoint/finite.h"

namespace lenscpp {
namespace {

using Row = std::span<double>;

double mean(std::span<const double> values) {
  constexpr std::size_t kLanes = 8;  // independent sums: one alone waits for each addition
  double sums[kLanes] = {};
  std::size_t whole = values.size() / kLanes * kLanes;
  for (std::size_t i = 0; i < whole; i += kLanes)
    for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += values[i + lane];
  for (std::size_t i = whole; i < values.size(); ++i) sums[i - whole] += values[i];
  double sum = 0;
  for (double lane : sums) sum += lane;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

void subtract_mean(Row values) {
  double m = mean(values);
  for (double& value : values) value -= m;
}

void center_row(std::int64_t /*row*/, Row values) { subtract_mean(values); }

// Calls visit(index, row) for rows [begin, end) of the last dimension, widened into one buffer.
template <class Visit>
void visit_rows(const Array& array, std::int64_t begin, std::int64_t end, const Visit& visit) {
  std::int64_t width = array.size(-1);
  std::vector<double> row(static_cast<std::size_t>(width));
  for (std::int64_t r = begin; r < end; ++r) {
    array.widen(r * width, row);
    visit(r, Row(row));
  }
}

std::int64_t rows_of(const Array& array) {
  std::int64_t width = array.size(-1);
  return width == 0 ? 0 : array.numel() / width;
}

template <class Visit>
void for_each_row(const Array& array, const Visit& visit) {
  visit_rows(array, 0, rows_of(array), visit);
}

// The array whose rows are what `change(index, row)` leaves in them, rounded once.
template <class Change>
Array with_rows(const Array& array, const Change& change, const ParallelFor& parallel) {
  MutableArray result(array.shape(), array.dtype());
  std::int64_t width = array.size(-1);
  parallel(rows_of(array), [&](std::int64_t begin, std::int64_t end) {
    visit_rows(array, begin, end, [&](std::int64_t r, Row row) {
      change(r, row);
      result.store(r * width, row);
    });
  });
  return std::move(result).freeze();
}

Array narrowed(std::span<const double> values, const Array& like) {
  MutableArray result(like.shape(), like.dtype());
  result.store(0, values);
  return std::move(result).freeze();
}

// What a norm multiplies by and adds.
struct NormWeights {
  std::vector<double> w, b;
  NormWeights(const Array& weight, const Array& bias, const Config& config)
      : w(weight.to_doubles()),
        b(bias.empty() ? std::vector<double>(w.size()) : bias.to_doubles()) {
    if (config.norm_adds_one)
      for (double& value : w) value += 1;
  }
};

// A norm's w and b into the matrix [in, out] and bias [out] that read it: y = (x w + b) W + c
// = x (w W) + (b W + c). The x of a LayerNorm has mean zero, so W may lose its mean over the
// inputs.
void fold_norm(const NormWeights& norm, bool centres, Array& matrix, std::vector<double>& bias) {
  const std::vector<double>&w = norm.w, &b = norm.b;
  std::vector<double> means(bias.size());
  for_each_row(matrix, [&](std::int64_t m, Row row) {
    for (std::size_t j = 0; j < row.size(); ++j) {
      bias[j] += b[m] * row[j];  // with the matrix as it was
      if (centres) means[j] += w[m] * row[j];
    }
  });
  for (double& value : means) value /= static_cast<double>(w.size());
  auto change = [&](std::int64_t m, Row row) {
    for (std::size_t j = 0; j < row.size(); ++j) row[j] = row[j] * w[m] - means[j];
  };
  matrix = with_rows(matrix, change, serial_for);
}

void process_layer(LayerWeights& layer, const Config& config, const Processing& steps) {
  std::vector<double> b_QKV = layer.b_QKV.to_doubles();  // [(n_heads + 2 n_kv_heads) d_head]
  std::vector<double> b_O = layer.b_O.to_doubles();
  std::vector<double> b_in = layer.b_in.to_doubles();
  if (steps.fold_ln) {
    bool centres = config.norms_centre();
    NormWeights ln1(layer.ln1_w, layer.ln1_b, config), ln2(layer.ln2_w, layer.ln2_b, config);
    fold_norm(ln1, centres, layer.W_QKV, b_QKV);
    fold_norm(ln2, centres, layer.W_in, b_in);
    auto fold_ln2 = [&](Array& matrix, Array& bias) {
      std::vector<double> b = bias.to_doubles();
      fold_norm(ln2, centres, matrix, b);
      bias = narrowed(b, bias);
    };
    if (config.gated_mlp) fold_ln2(layer.W_gate, layer.b_gate);
    if (config.experts) fold_ln2(layer.W_router, layer.b_router);
    layer.ln1_w = layer.ln1_b = layer.ln2_w = layer.ln2_b = Array();
    layer.b_in = narrowed(b_in, layer.b_in);
  }
  if (steps.center_writing_weights) {
    layer.W_out = with_rows(layer.W_out, center_row, serial_for);
    layer.b_out = with_rows(layer.b_out, center_row, serial_for);
  }
  if (steps.center_writing_weights || steps.fold_value_biases) {
    // Row h d_head + i of W_O reads value i of the group that head h belongs to.
    const std::int64_t first_value = (config.n_heads + config.n_kv_heads) * config.d_head;
    const std::int64_t heads_a_group = config.n_heads / config.n_kv_heads;
    auto value_of_row = [&](std::int64_t r) {
      std::int64_t group = r / config.d_head / heads_a_group;
      return first_value + group * config.d_head + r % config.d_head;
    };
    auto change = [&](std::int64_t r, Row row) {
      if (steps.center_writing_weights) subtract_mean(row);
      if (!steps.fold_value_biases) return;
      double b_V = b_QKV[static_cast<std::size_t>(value_of_row(r))];
      for (std::size_t j = 0; j < row.size(); ++j) b_O[j] += b_V * row[j];
    };
    if (steps.center_writing_weights)
      layer.W_O = with_rows(layer.W_O, change, serial_for);
    else
      for_each_row(layer.W_O, change);
    if (steps.center_writing_weights) subtract_mean(b_O);
    if (steps.fold_value_biases) std::fill(b_QKV.begin() + first_value, b_QKV.end(), 0.0);
    layer.b_O = narrowed(b_O, layer.b_O);
  }
  if (steps.fold_ln || steps.fold_value_biases) layer.b_QKV = narrowed(b_QKV, layer.b_QKV);
}

// The sum of each column of what `change(index, row part, first column)` makes of a matrix. Threads
// share the columns, so that each sum has one order.
template <class Change>
std::vector<double> column_sums(const Array& array, const Change& change,
                                const ParallelFor& parallel) {
  std::int64_t width = array.size(-1);
  constexpr std::int64_t kColumns = 16;  // a line of memory
  std::vector<double> sums(static_cast<std::size_t>(width));
  parallel((width + kColumns - 1) / kColumns, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t first = begin * kColumns, last = std::min(end * kColumns, width);
    std::vector<double> part(static_cast<std::size_t>(last - first));
    for (std::int64_t r = 0; r < rows_of(array); ++r) {
      array.widen(r * width + first, part);
      change(r, Row(part), first);
      for (std::size_t j = 0; j < part.size(); ++j)
        sums[static_cast<std::size_t>(first) + j] += part[j];
    }
  });
  return sums;
}

// W_U has one row a token: the mean over d_model is a row's, the mean over the vocabulary a
// column's.
void process_unembedding(Weights& weights, const Processing& steps, const ParallelFor& parallel) {
  if (!steps.fold_ln && !steps.center_unembed) return;
  auto d_model = static_cast<std::size_t>(weights.config.d_model);
  std::vector<double> b_U = weights.b_U.to_doubles();
  std::vector<double> w(d_model, 1), means(d_model), row_means(b_U.size());
  if (steps.fold_ln) {
    NormWeights norm(weights.ln_final_w, weights.ln_final_b, weights.config);
    w = std::move(norm.w);
    const std::vector<double>& b = norm.b;
    bool centre = weights.config.norms_centre();
    parallel(rows_of(weights.W_U), [&](std::int64_t begin, std::int64_t end) {
      visit_rows(weights.W_U, begin, end, [&](std::int64_t v, Row row) {
        for (std::size_t m = 0; m < d_model; ++m) b_U[static_cast<std::size_t>(v)] += b[m] * row[m];
        for (std::size_t m = 0; m < d_model; ++m) row[m] *= w[m];
        if (centre) row_means[static_cast<std::size_t>(v)] = mean(row);
      });
    });
  }
  auto fold = [&](std::int64_t v, Row part, std::int64_t first) {  // neither without fold_ln
    double row_mean = row_means[static_cast<std::size_t>(v)];
    const double* scale = w.data() + first;
    for (std::size_t j = 0; j < part.size(); ++j) part[j] = part[j] * scale[j] - row_mean;
  };
  if (steps.center_unembed) {
    means = column_sums(weights.W_U, fold, parallel);
    for (double& value : means) value /= static_cast<double>(weights.config.d_vocab);
    subtract_mean(b_U);
  }
  auto change = [&](std::int64_t v, Row row) {
    fold(v, row, 0);
    for (std::size_t m = 0; m < d_model; ++m) row[m] -= means[m];
  };
  weights.W_U = with_rows(weights.W_U, change, parallel);
  weights.b_U = narrowed(b_U, weights.b_U);
}

void require_all_finite(const Weights& weights, const ParallelFor& parallel) {
  constexpr std::int64_t kTogether = 1 << 18;
  weights.for_each([&](const std::string& name, const Array& array) {
    Array flat = array.reshaped({array.numel()});
    std::atomic<bool> finite = true;
    parallel((array.numel() + kTogether - 1) / kTogether,
             [&](std::int64_t begin, std::int64_t end) {
               Array part = flat.rows(begin * kTogether, std::min(end * kTogether, array.numel()));
               if (first_not_finite(part)) finite = false;
             });
    if (!finite)
      require_finite(array, "[processing] " + name, "; process in a wider dtype, then cast");
  });
}

}  // namespace

Processing applicable(Processing steps, const Config& config) {
  // What an RMSNorm reads may not lose its mean, nor a capped logit: they are not seen relative to
  // it. A norm behind attention or MLP scales what they return: it stays.
  steps.center_writing_weights &= config.norms_centre();
  steps.center_unembed &= !config.logits_softcap;
  steps.fold_ln &= config.norm_placement != NormPlacement::after;
  // What is normed is the residual stream itself, which everything behind reads: nothing may move.
  if (config.norm_placement == NormPlacement::sum) return Processing::none();
  return steps;
}

NormKind folded(NormKind norm) {
  switch (norm) {
    case NormKind::layer_norm:
    case NormKind::layer_norm_pre:
      return NormKind::layer_norm_pre;
    case NormKind::rms_norm:
    case NormKind::rms_norm_pre:
      return NormKind::rms_norm_pre;
  }
  throw std::logic_error("[processing] not a NormKind");
}

Weights process(const Weights& weights, const Processing& asked_for, const ParallelFor& parallel) {
  if (asked_for.fold_ln && !weights.config.norms_affine())
    throw std::invalid_argument("[processing] fold_ln: these weights are " +
                                std::string(name_of(weights.config.norm)) +
                                ", the norms of raw weights (layer_norm, rms_norm) can be folded");
  Processing processing = applicable(asked_for, weights.config);
  Weights result = weights;
  process_unembedding(result, processing, parallel);
  parallel(std::ssize(result.layers), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t l = begin; l < end; ++l)
      process_layer(result.layers[static_cast<std::size_t>(l)], result.config, processing);
  });
  if (processing.center_writing_weights) {
    result.W_E = with_rows(result.W_E, center_row, parallel);
    if (!result.W_pos.empty()) result.W_pos = with_rows(result.W_pos, center_row, parallel);
  }
  if (processing.fold_ln) {
    result.ln_final_w = result.ln_final_b = Array();
    result.config.norm = folded(result.config.norm);
  }
  if (processing.any()) require_all_finite(result, parallel);
  return result;
}

}  // namespace lenscpp
