// Copies of weights, stacked over layers and split into heads.
#include "lens/weight_views.h"

#include <cstring>
#include <functional>
#include <stdexcept>

#include "hooks/nearest.h"
#include "lens/torch_parallel.h"

namespace lenscpp {
namespace {

// Block b of `blocks` is `shape`; `fill` writes it.
Array stacked(std::int64_t blocks, const Shape& shape, DType dtype,
              const std::function<void(std::int64_t, std::byte*)>& fill) {
  Shape all{blocks};
  all.insert(all.end(), shape.begin(), shape.end());
  MutableArray result(all, dtype);
  std::int64_t block_bytes = numel(shape) * static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t b = 0; b < blocks; ++b) fill(b, result.bytes() + b * block_bytes);
  return std::move(result).freeze();
}

using MatrixOf = Matrix (Weights::*)(std::int64_t) const;
using VectorOf = Vector (Weights::*)(std::int64_t) const;

// [layer, part, d_model, width] out of [d_model, parts * width] columns: of heads, of experts.
Array input_parts(const Weights& w, MatrixOf matrix, std::int64_t parts, std::int64_t width) {
  std::int64_t d_model = w.config.d_model;
  auto element = static_cast<std::int64_t>(size_of(w.dtype));
  return stacked(
      w.config.n_layers, {parts, d_model, width}, w.dtype, [&](std::int64_t layer, std::byte* to) {
        Matrix m = (w.*matrix)(layer);
        for (std::int64_t p = 0; p < parts; ++p)
          for (std::int64_t i = 0; i < d_model; ++i, to += width * element)
            std::memcpy(
                to,
                m.storage.bytes() + (i * m.storage.size(1) + m.first_output + p * width) * element,
                static_cast<std::size_t>(width * element));
      });
}
Array input_heads(const Weights& w, MatrixOf matrix, std::int64_t heads) {
  return input_parts(w, matrix, heads, w.config.d_head);
}

Array biases(const Weights& w, VectorOf vector, std::int64_t heads) {
  return stacked(
      w.config.n_layers, {heads, w.config.d_head}, w.dtype, [&](std::int64_t layer, std::byte* to) {
        Vector v = (w.*vector)(layer);
        std::memcpy(to, v.storage.bytes() + v.first * static_cast<std::int64_t>(size_of(w.dtype)),
                    static_cast<std::size_t>(v.size) * size_of(w.dtype));
      });
}

Array whole(const Weights& w, Array LayerWeights::*member, const Shape& shape) {
  return stacked(w.config.n_layers, shape, w.dtype, [&](std::int64_t layer, std::byte* to) {
    const Array& array = w.layers[static_cast<std::size_t>(layer)].*member;
    std::memcpy(to, array.bytes(), array.nbytes());
  });
}

// Of MLPs, or of experts: those have an axis of their own before these.
Shape of_mlp(const Config& c, Shape shape) {
  if (c.experts) shape.insert(shape.begin(), c.experts->count);
  return shape;
}
Array mlp_inputs(const Weights& w, MatrixOf matrix, Array LayerWeights::*member) {
  const Config& c = w.config;
  return c.experts ? input_parts(w, matrix, c.experts->count, c.d_mlp)
                   : whole(w, member, {c.d_model, c.d_mlp});
}

Array own(const Array& array) { return MutableArray(array).freeze(); }

// [d_model, d_vocab] out of a row a token.
Array transposed(const Array& rows) {
  std::int64_t n = rows.size(0), d = rows.size(1);
  auto element = size_of(rows.dtype());
  MutableArray result({d, n}, rows.dtype());
  std::byte* to = result.bytes();
  torch_parallel_for(d, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t i = begin; i < end; ++i)
        std::memcpy(to + static_cast<std::size_t>(i * n + j) * element,
                    rows.bytes() + static_cast<std::size_t>(j * d + i) * element, element);
  });
  return std::move(result).freeze();
}

struct View {
  std::string_view name;
  Array (*make)(const Weights&);
};
constexpr View kViews[] = {
    {"W_E", [](const Weights& w) { return own(w.W_E); }},
    {"W_pos", [](const Weights& w) { return own(w.W_pos); }},
    {"W_U", [](const Weights& w) { return transposed(w.W_U); }},
    {"b_U", [](const Weights& w) { return own(w.b_U); }},
    {"W_Q", [](const Weights& w) { return input_heads(w, &Weights::W_Q, w.config.n_heads); }},
    {"W_K", [](const Weights& w) { return input_heads(w, &Weights::W_K, w.config.n_kv_heads); }},
    {"W_V", [](const Weights& w) { return input_heads(w, &Weights::W_V, w.config.n_kv_heads); }},
    {"W_O",
     [](const Weights& w) {
       return whole(w, &LayerWeights::W_O, {w.config.n_heads, w.config.d_head, w.config.d_model});
     }},
    {"b_Q", [](const Weights& w) { return biases(w, &Weights::b_Q, w.config.n_heads); }},
    {"b_K", [](const Weights& w) { return biases(w, &Weights::b_K, w.config.n_kv_heads); }},
    {"b_V", [](const Weights& w) { return biases(w, &Weights::b_V, w.config.n_kv_heads); }},
    {"b_O", [](const Weights& w) { return whole(w, &LayerWeights::b_O, {w.config.d_model}); }},
    {"W_router",
     [](const Weights& w) {
       return whole(w, &LayerWeights::W_router, {w.config.d_model, w.config.experts->count});
     }},
    {"W_gate",
     [](const Weights& w) { return mlp_inputs(w, &Weights::W_gate, &LayerWeights::W_gate); }},
    {"b_gate",
     [](const Weights& w) {
       return whole(w, &LayerWeights::b_gate, of_mlp(w.config, {w.config.d_mlp}));
     }},
    {"W_in", [](const Weights& w) { return mlp_inputs(w, &Weights::W_in, &LayerWeights::W_in); }},
    {"b_in",
     [](const Weights& w) {
       return whole(w, &LayerWeights::b_in, of_mlp(w.config, {w.config.d_mlp}));
     }},
    {"W_out",
     [](const Weights& w) {
       return whole(w, &LayerWeights::W_out, of_mlp(w.config, {w.config.d_mlp, w.config.d_model}));
     }},
    {"b_out", [](const Weights& w) { return whole(w, &LayerWeights::b_out, {w.config.d_model}); }},
};

void require_logits(const Config& config, std::string_view name) {
  if (!unembeds(config.head))
    throw std::invalid_argument("[weights] " + std::string(name) +
                                ": this model has no logits of tokens (its head: " +
                                std::string(name_of(config.head)) + ")");
}

}  // namespace

Array weight_view(const Weights& weights, std::string_view name) {
  for (const View& view : kViews)
    if (view.name == name) {
      if (name.ends_with("_gate") && !weights.config.gated_mlp)
        throw std::invalid_argument("[weights] " + std::string(name) +
                                    ": the MLPs of this model are not gated");
      if (name.ends_with("_U")) require_logits(weights.config, name);
      if (name == "W_router" && !weights.config.experts)
        throw std::invalid_argument("[weights] W_router: the MLPs of this model are no experts");
      if (name == "W_pos" && weights.W_pos.empty())
        throw std::invalid_argument("[weights] W_pos: the positions of this model are " +
                                    std::string(name_of(weights.config.positions)));
      return view.make(weights);
    }
  auto names = weight_names();
  throw std::invalid_argument("[weights] no weight " + in_quotes(name) +
                              "; nearest: " + nearest_names(name, names));
}

std::vector<std::string> weight_names() {
  std::vector<std::string> names;
  for (const View& view : kViews) names.emplace_back(view.name);
  return names;
}

Array residual_directions(const Weights& weights, const std::vector<std::int64_t>& tokens) {
  require_logits(weights.config, "W_U");
  std::int64_t d_model = weights.config.d_model;
  std::size_t row_bytes = static_cast<std::size_t>(d_model) * size_of(weights.dtype);
  MutableArray result({static_cast<std::int64_t>(tokens.size()), d_model}, weights.dtype);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= weights.config.d_vocab)
      throw std::out_of_range("[weights] token " + std::to_string(tokens[i]) +
                              " out of range: the vocabulary has " +
                              std::to_string(weights.config.d_vocab) + " tokens");
    std::memcpy(result.bytes() + i * row_bytes,
                weights.W_U.bytes() + static_cast<std::size_t>(tokens[i]) * row_bytes, row_bytes);
  }
  return std::move(result).freeze();
}

}  // namespace lenscpp
