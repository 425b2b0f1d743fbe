// Permutations of weights and of recorded tensors.
#include "verify/device/reordering.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>

namespace lenscpp {
namespace {

using Order = std::vector<std::int64_t>;

// Not std::shuffle, whose result differs between standard libraries.
Order drawn(std::int64_t n, std::mt19937_64& random) {
  Order order(static_cast<std::size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

Order inverse(const Order& order) {
  Order result(order.size());
  for (std::size_t i = 0; i < order.size(); ++i)
    result[static_cast<std::size_t>(order[i])] = static_cast<std::int64_t>(i);
  return result;
}

// Along one axis, the element of `order[i]` at i. Folded norms and the like stay empty.
Array gathered(const Array& x, int axis, const Order& order) {
  if (x.rank() == 0) return x;
  if (x.size(axis) != static_cast<std::int64_t>(order.size()))
    throw std::invalid_argument("[reordering] " + to_string(x.shape()) + ": axis " +
                                std::to_string(axis) + " has not " + std::to_string(order.size()) +
                                " elements");
  std::int64_t outer = 1, bytes = static_cast<std::int64_t>(size_of(x.dtype()));
  for (int d = 0; d < axis; ++d) outer *= x.size(d);
  for (int d = axis + 1; d < x.rank(); ++d) bytes *= x.size(d);
  MutableArray result(x.shape(), x.dtype());
  std::int64_t extent = x.size(axis);
  for (std::int64_t o = 0; o < outer; ++o)
    for (std::int64_t i = 0; i < extent; ++i)
      std::memcpy(result.bytes() + (o * extent + i) * bytes,
                  x.bytes() + (o * extent + order[static_cast<std::size_t>(i)]) * bytes,
                  static_cast<std::size_t>(bytes));
  return std::move(result).freeze();
}

}  // namespace

Reordering::Reordering(const Config& config, std::uint64_t seed) : config_(config) {
  std::mt19937_64 random(seed);
  model_ = drawn(config.d_model, random);
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    Layer layer{.mlp = drawn(config.d_mlp, random), .queries_keys = {}, .values = {}};
    for (std::int64_t h = 0; h < config.n_kv_heads; ++h) {
      // Rotary positions and norms of a head know its elements by their places.
      Order order = drawn(config.d_head, random);
      if (config.rotary || config.qk_norm != QkNorm::none) std::ranges::sort(order);
      layer.queries_keys.push_back(std::move(order));
      layer.values.push_back(drawn(config.d_head, random));
    }
    layers_.push_back(std::move(layer));
  }
}

Reordering::Order Reordering::end_to_end(const std::vector<Order>& of_heads,
                                         std::int64_t heads) const {
  Order order;
  std::int64_t group = heads / config_.n_kv_heads;  // query heads that share a key-value head
  for (std::int64_t h = 0; h < heads; ++h)
    for (std::int64_t i : of_heads[static_cast<std::size_t>(h / group)])
      order.push_back(h * config_.d_head + i);
  return order;
}

Weights Reordering::apply(const Weights& weights) const {
  Weights w = weights;
  w.W_E = gathered(w.W_E, 1, model_);
  w.W_pos = gathered(w.W_pos, 1, model_);
  w.W_type = gathered(w.W_type, 1, model_);
  w.embed_ln_w = gathered(w.embed_ln_w, 0, model_);
  w.embed_ln_b = gathered(w.embed_ln_b, 0, model_);
  w.W_head = gathered(gathered(w.W_head, 0, model_), 1, model_);
  w.b_head = gathered(w.b_head, 0, model_);
  w.W_class = gathered(w.W_class, 0, model_);
  w.ln_final_w = gathered(w.ln_final_w, 0, model_);
  w.ln_final_b = gathered(w.ln_final_b, 0, model_);
  w.W_U = gathered(w.W_U, 1, model_);
  for (std::size_t l = 0; l < w.layers.size(); ++l) {
    LayerWeights& layer = w.layers[l];
    const Layer& own = layers_.at(l);
    Order values = end_to_end(own.values, config_.n_heads);
    Order columns = end_to_end(own.queries_keys, config_.n_heads);  // then keys, then values
    for (const auto* part : {&own.queries_keys, &own.values}) {
      auto first = static_cast<std::int64_t>(columns.size());
      for (std::int64_t i : end_to_end(*part, config_.n_kv_heads)) columns.push_back(first + i);
    }
    for (Array* of_model : {&layer.ln1_w, &layer.ln1_b, &layer.b_O, &layer.ln2_w, &layer.ln2_b,
                            &layer.ln1_post_w, &layer.ln2_post_w, &layer.W_QKV, &layer.W_router,
                            &layer.W_gate, &layer.W_in, &layer.b_out})
      *of_model = gathered(*of_model, 0, model_);
    layer.W_QKV = gathered(layer.W_QKV, 1, columns);
    layer.b_QKV = gathered(layer.b_QKV, 0, columns);
    layer.W_O = gathered(gathered(layer.W_O, 0, values), 1, model_);
    Order neurons;  // of each expert alike
    for (std::int64_t first = 0; first < config_.n_neurons(); first += config_.d_mlp)
      for (std::int64_t i : own.mlp) neurons.push_back(first + i);
    layer.W_gate = gathered(layer.W_gate, 1, neurons);
    layer.b_gate = gathered(layer.b_gate, 0, neurons);
    layer.W_in = gathered(layer.W_in, 1, neurons);
    layer.b_in = gathered(layer.b_in, 0, neurons);
    layer.W_out = gathered(gathered(layer.W_out, 0, neurons), 1, model_);
  }
  return w;
}

// [batch, pos, head, d_head], each head by itself.
Array Reordering::heads_undone(const std::vector<Order>& of_heads, const Array& value) const {
  std::int64_t heads = value.size(2), width = heads * config_.d_head;
  Array flat = value.reshaped({value.size(0), value.size(1), width});
  return gathered(flat, 2, inverse(end_to_end(of_heads, heads))).reshaped(value.shape());
}

Array Reordering::undo(const TensorId& id, const Array& value) const {
  auto axes = info(id.site).axes;
  auto layer = static_cast<std::size_t>(id.layer);
  switch (axes.back()) {
    case Axis::d_model:
      return gathered(value, value.rank() - 1, inverse(model_));
    case Axis::d_mlp:
      return gathered(value, value.rank() - 1, inverse(layers_.at(layer).mlp));
    case Axis::d_head: {
      const Layer& own = layers_.at(layer);
      bool of_values = id.site == Site::v || id.site == Site::values || id.site == Site::z;
      return heads_undone(of_values ? own.values : own.queries_keys, value);
    }
    default:
      return value;
  }
}

}  // namespace lenscpp
