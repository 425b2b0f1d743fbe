// Stacks of parts of the residual stream.
#include "lens/decomposition.h"

#include <cstring>
#include <stdexcept>

#include "lens/residual_parts.h"

namespace lenscpp {
namespace {

void append(std::vector<Part>& to, std::vector<Part> parts) {
  for (Part& part : parts) to.push_back(std::move(part));
}

// What is done to every part before it is stored.
struct Finish {
  std::optional<Eigen::VectorXd> frozen_scale = {};
  bool final_norm = false;
  Array projection = {};
};

Finish frozen(const ResidualParts& reader, bool apply_ln, std::int64_t layer, bool mlp_input,
              const Array& projection = {}) {
  Finish finish{.projection = projection};
  if (apply_ln) finish.frozen_scale = reader.norm_scale(layer, mlp_input);
  return finish;
}

// [d_model, output] of a vector or matrix.
Mat projection_matrix(const ResidualParts& reader, const Array& p) {
  std::int64_t d_model = reader.config().d_model;
  if (p.rank() < 1 || p.rank() > 2 || p.size(0) != d_model)
    throw std::invalid_argument("[" + reader.where() + "] project_output_onto of shape " +
                                to_string(p.shape()) + "; allowed: [" + std::to_string(d_model) +
                                "] and [" + std::to_string(d_model) + ", output]");
  Mat matrix(d_model, p.numel() / d_model);
  p.widen(0, {matrix.data(), static_cast<std::size_t>(p.numel())});
  return matrix;
}

// Stores parts one after the other. `whole`, where given, becomes one more: less all others.
Stack stacked(const ResidualParts& reader, std::vector<Part> parts, const Finish& finish,
              const std::optional<Part>& whole = {}) {
  std::optional<Mat> projection;
  if (finish.projection.rank() > 0) projection = projection_matrix(reader, finish.projection);
  Mat rest;
  if (whole) {
    rest = whole->value();
    parts.push_back({whole->label, [&] { return rest; }});
  }
  Shape last{projection ? projection->cols() : reader.config().d_model};
  if (finish.projection.rank() == 1) last.clear();
  Shape shape = reader.shape(last);
  shape.insert(shape.begin(), static_cast<std::int64_t>(parts.size()));
  MutableArray values(shape, accumulate_type(reader.dtype()));
  Stack stack;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Mat x = parts[i].value();
    if (whole && i + 1 < parts.size()) rest -= x;
    if (finish.final_norm) x = through_final_norm(std::move(x), reader.weights());
    if (finish.frozen_scale) {
      x = centred(std::move(x), reader.config().norm);
      x.array().colwise() /= finish.frozen_scale->array();
    }
    if (projection) x = x * *projection;
    values.store(static_cast<std::int64_t>(i) * x.size(),
                 {x.data(), static_cast<std::size_t>(x.size())});
    stack.labels.push_back(parts[i].label);
  }
  stack.values = std::move(values).freeze();
  return stack;
}

// The input of a layer: what the parts before it sum to.
Part residual(const ResidualParts& reader, std::int64_t layer, const std::string& label) {
  bool last = layer == reader.config().n_layers;
  return {label, [&reader, last, layer] {
            return reader.rows_of(last ? Site::resid_post : Site::resid_pre,
                                  last ? layer - 1 : layer);
          }};
}

// Biases of all sublayers before a layer's input.
std::vector<Array> biases_before(const Weights& w, std::int64_t layer, bool mlp_input,
                                 bool of_mlps) {
  std::vector<Array> biases;
  for (std::int64_t l = 0; l < layer + (mlp_input ? 1 : 0); ++l) {
    const LayerWeights& weights = w.layers[static_cast<std::size_t>(l)];
    biases.push_back(weights.b_O);
    if (of_mlps && l < layer) biases.push_back(weights.b_out);
  }
  return biases;
}

}  // namespace

HeldExtents held_extents(const VerifiedCache& cache) {
  ResidualParts reader(cache, "cache", {});
  return {reader.batch(), reader.extent()};
}

Stack accumulated_resid(const VerifiedCache& cache, const AccumulatedOptions& options) {
  ResidualParts reader(cache, "accumulated_resid", options.pos);
  require_additive(reader.config(), reader.where());
  std::int64_t n = reader.config().n_layers, layer = reader.up_to(options.layer, options.mlp_input);
  std::vector<Part> parts;
  for (std::int64_t l = 0; l <= layer; ++l) {
    parts.push_back(residual(reader, l, l == n ? "final_post" : std::to_string(l) + "_pre"));
    if ((options.incl_mid && l < layer) || (options.mlp_input && l == layer))
      parts.push_back({std::to_string(l) + "_mid",
                       [&reader, l] { return reader.rows_of(Site::resid_mid, l); }});
  }
  if (options.apply_ln && layer == n) return stacked(reader, parts, {.final_norm = true});
  return stacked(reader, parts, frozen(reader, options.apply_ln, layer, options.mlp_input));
}

Stack decompose_resid(const VerifiedCache& cache, const DecomposeOptions& options) {
  ResidualParts reader(cache, "decompose_resid", options.pos);
  require_additive(reader.config(), reader.where());
  std::int64_t layer = reader.up_to(options.layer, options.mlp_input);
  std::vector<Part> parts;
  if (options.incl_embeds) parts = reader.embeddings();
  for (std::int64_t l = 0; l < layer; ++l) {
    if (options.mode != ResidMode::mlp) parts.push_back(reader.attn_out(l));
    if (options.mode != ResidMode::attn) parts.push_back(reader.mlp_out(l));
  }
  if (options.mlp_input && options.mode != ResidMode::mlp) parts.push_back(reader.attn_out(layer));
  return stacked(reader, parts, frozen(reader, options.apply_ln, layer, options.mlp_input));
}

Stack stack_head_results(const VerifiedCache& cache, const HeadOptions& options) {
  ResidualParts reader(cache, "stack_head_results", options.pos);
  require_additive_parts(reader.config(), reader.where());
  std::int64_t layer = reader.up_to(options.layer);
  std::vector<Part> parts;
  for (std::int64_t l = 0; l < layer; ++l) append(parts, reader.heads(l));
  std::optional<Part> whole;
  if (options.incl_remainder) whole = residual(reader, layer, "remainder");
  return stacked(reader, parts, frozen(reader, options.apply_ln, layer, false), whole);
}

Stack stack_neuron_results(const VerifiedCache& cache, const NeuronOptions& options) {
  ResidualParts reader(cache, "stack_neuron_results", options.pos);
  require_additive_parts(reader.config(), reader.where());
  std::int64_t layer = reader.up_to(options.layer);
  auto which = chosen(reader.where(), "neuron", options.neurons, reader.config().d_mlp);
  std::vector<Part> parts;
  for (std::int64_t l = 0; l < layer; ++l) append(parts, reader.neurons(l, which));
  std::optional<Part> whole;
  if (options.incl_remainder) whole = residual(reader, layer, "remainder");
  return stacked(reader, parts,
                 frozen(reader, options.apply_ln, layer, false, options.project_output_onto),
                 whole);
}

Array get_neuron_results(const VerifiedCache& cache, const NeuronOptions& options) {
  ResidualParts reader(cache, "get_neuron_results", options.pos);
  const Config& config = reader.config();
  std::int64_t layer = options.layer.value_or(config.n_layers), found = layer;
  if (layer < 0) layer += config.n_layers;
  if (layer < 0 || layer >= config.n_layers)
    throw std::out_of_range("[get_neuron_results] layer " + std::to_string(found) +
                            " out of range: there are " + std::to_string(config.n_layers) +
                            " (0.." + std::to_string(config.n_layers - 1) + ")");
  auto which = chosen(reader.where(), "neuron", options.neurons, config.d_mlp);
  Array stack =
      stacked(reader, reader.neurons(layer, which), {.projection = options.project_output_onto})
          .values;
  // [neuron, rows, size] to [rows, neuron, size].
  std::int64_t neurons = stack.size(0), rows = reader.rows(), size = stack.numel() / neurons / rows;
  Shape last;
  if (!options.neurons.collapses) last.push_back(neurons);
  if (options.project_output_onto.rank() != 1) last.push_back(size);
  MutableArray result(reader.shape(last), stack.dtype());
  std::size_t bytes = static_cast<std::size_t>(size) * size_of(stack.dtype());
  for (std::int64_t n = 0; n < neurons; ++n)
    for (std::int64_t r = 0; r < rows; ++r)
      std::memcpy(result.bytes() + static_cast<std::size_t>(r * neurons + n) * bytes,
                  stack.bytes() + static_cast<std::size_t>(n * rows + r) * bytes, bytes);
  return std::move(result).freeze();
}

Stack get_full_resid_decomposition(const VerifiedCache& cache, const FullOptions& options) {
  ResidualParts reader(cache, "get_full_resid_decomposition", options.pos);
  require_additive_parts(reader.config(), reader.where());
  const Weights& w = reader.weights();
  std::int64_t layer = reader.up_to(options.layer, options.mlp_input);
  auto every = chosen(reader.where(), "neuron", {}, reader.config().d_mlp);
  std::vector<Part> parts;
  for (std::int64_t l = 0; l < layer + (options.mlp_input ? 1 : 0); ++l)
    append(parts, reader.heads(l));
  for (std::int64_t l = 0; l < layer; ++l)
    if (options.expand_neurons)
      append(parts, reader.neurons(l, every));
    else
      parts.push_back(reader.mlp_out(l));
  append(parts, reader.embeddings());
  parts.push_back(
      reader.bias("bias", biases_before(w, layer, options.mlp_input, options.expand_neurons)));
  return stacked(
      reader, parts,
      frozen(reader, options.apply_ln, layer, options.mlp_input, options.project_output_onto));
}

Array stack_activation(const VerifiedCache& cache, const std::string& name,
                       std::optional<std::int64_t> layer, const std::string& sublayer_type) {
  ResidualParts reader(cache, "stack_activation", {});
  std::int64_t n = reader.up_to(layer);
  if (n == 0) throw std::out_of_range("[stack_activation] layer 0: there is none before it");
  std::optional<MutableArray> stack;
  for (std::int64_t l = 0; l < n; ++l) {
    TensorId id = find_hook(name, l, sublayer_type, reader.config());
    if (!info(id.site).per_layer)
      throw std::invalid_argument("[stack_activation] " + hook_name(id.site, 0) +
                                  " is not one a layer");
    const Array& x = reader.activation(id.site, l);
    if (!stack) {
      Shape shape = x.shape();
      shape.insert(shape.begin(), n);
      stack.emplace(shape, x.dtype());
    }
    std::memcpy(stack->bytes() + static_cast<std::size_t>(l) * x.nbytes(), x.bytes(), x.nbytes());
  }
  return std::move(*stack).freeze();
}

}  // namespace lenscpp
