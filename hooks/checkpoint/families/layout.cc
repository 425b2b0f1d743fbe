// Weights by the names of Llama's tensors.
#include "hooks/checkpoint/families/layout.h"

#include <stdexcept>
#include <utility>

#include "hooks/checkpoint/finite.h"

namespace lenscpp {
namespace {

// The embedding times a constant that is itself rounded to the model's dtype, as the model's own
// code does: rounded once more.
Array scaled(const Array& table, double scale) {
  if (scale == 1) return table;
  MutableArray constant({1}, table.dtype());
  constant.set(0, scale);
  MutableArray result(table.shape(), table.dtype());
  std::vector<double> row(static_cast<std::size_t>(table.size(1)));
  for (std::int64_t r = 0; r < table.size(0); ++r) {
    table.widen(r * table.size(1), row);
    for (double& x : row) x *= constant.get(0);
    result.store(r * table.size(1), row);
  }
  Array frozen = std::move(result).freeze();
  require_finite(frozen, "[weights] the embedding times its scale", "");
  return frozen;
}

class Layout {
 public:
  Layout(const Config& config, TensorSource& tensors, StoredProjections stored)
      : c(config), t(tensors), stored(stored) {}

  LayerWeights layer(const std::string& at) {
    LayerWeights w;
    take_norms(w, at);
    const std::string attn = at + "self_attn.";
    if (stored == StoredProjections::fused)
      take_fused(w, at);
    else
      take_attention(w, t, c, {attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "o_proj"});
    if (c.experts)
      take_experts(w, at);
    else
      take_mlp(w, at);
    t.ignore(attn + "rotary_emb.inv_freq");  // of old files; it follows from config.json
    return w;
  }

  void take_norm(Array& weight, Array& bias, const std::string& name) {
    weight = t.take(name + ".weight", {c.d_model});
    if (c.norm == NormKind::layer_norm) bias = t.take(name + ".bias", {c.d_model});
  }

 private:
  void take_norms(LayerWeights& w, const std::string& at) {
    auto post = [&](const char* name) { return t.take(at + name + ".weight", {c.d_model}); };
    switch (c.norm_placement) {
      case NormPlacement::before:
        take_norm(w.ln1_w, w.ln1_b, at + "input_layernorm");
        if (c.topology == Topology::parallel)  // one norm for both
          w.ln2_w = w.ln1_w, w.ln2_b = w.ln1_b;
        else
          take_norm(w.ln2_w, w.ln2_b, at + "post_attention_layernorm");
        break;
      case NormPlacement::around:
        take_norm(w.ln1_w, w.ln1_b, at + "input_layernorm");
        w.ln1_post_w = post("post_attention_layernorm");
        take_norm(w.ln2_w, w.ln2_b, at + "pre_feedforward_layernorm");
        w.ln2_post_w = post("post_feedforward_layernorm");
        break;
      case NormPlacement::sum:
        throw std::logic_error("[weights] no family of these names norms its residual stream");
      case NormPlacement::after:
        w.ln1_post_w = post("post_attention_layernorm");
        w.ln2_post_w = post("post_feedforward_layernorm");
        break;
    }
    if (c.qk_norm == QkNorm::none) return;
    auto width = [&](std::int64_t heads) {
      return c.qk_norm == QkNorm::whole ? heads * c.d_head : c.d_head;
    };
    w.q_norm_w = t.take(at + "self_attn.q_norm.weight", {width(c.n_heads)});
    w.k_norm_w = t.take(at + "self_attn.k_norm.weight", {width(c.n_kv_heads)});
  }

  void take_mlp(LayerWeights& w, const std::string& at) {
    if (stored == StoredProjections::apart) {
      w.W_gate = take_linear(t, at + "mlp.gate_proj", c.d_model, c.d_mlp);
      w.b_gate = take_bias(t, at + "mlp.gate_proj", c.d_mlp, c.biases.mlp);
      w.W_in = take_linear(t, at + "mlp.up_proj", c.d_model, c.d_mlp);
      w.b_in = take_bias(t, at + "mlp.up_proj", c.d_mlp, c.biases.mlp);
    }
    w.W_out = take_linear(t, at + "mlp.down_proj", c.d_mlp, c.d_model);
    w.b_out = take_bias(t, at + "mlp.down_proj", c.d_model, c.biases.mlp);
  }

  // Of each expert: [d_mlp, d_model], [d_mlp, d_model], [d_model, d_mlp].
  struct ExpertMatrices {
    std::vector<Array> gate, in, out;
  };
  // A tensor for each matrix, as files have them.
  ExpertMatrices experts_apart(const std::string& at) {
    ExpertMatrices m;
    for (std::int64_t e = 0; e < c.experts->count; ++e) {
      const std::string own = at + std::to_string(e) + ".";
      m.gate.push_back(t.take(own + "w1.weight", {c.d_mlp, c.d_model}));
      m.in.push_back(t.take(own + "w3.weight", {c.d_mlp, c.d_model}));
      m.out.push_back(t.take(own + "w2.weight", {c.d_model, c.d_mlp}));
    }
    return m;
  }
  // All experts in one, as transformers 5 holds them.
  ExpertMatrices experts_together(const std::string& at) {
    std::int64_t n = c.experts->count;
    Array both = t.take(at + "gate_up_proj", {n, 2 * c.d_mlp, c.d_model})
                     .reshaped({2 * n * c.d_mlp, c.d_model});
    Array down =
        t.take(at + "down_proj", {n, c.d_model, c.d_mlp}).reshaped({n * c.d_model, c.d_mlp});
    ExpertMatrices m;
    for (std::int64_t e = 0; e < n; ++e) {
      m.gate.push_back(both.rows(2 * e * c.d_mlp, (2 * e + 1) * c.d_mlp));
      m.in.push_back(both.rows((2 * e + 1) * c.d_mlp, (2 * e + 2) * c.d_mlp));
      m.out.push_back(down.rows(e * c.d_model, (e + 1) * c.d_model));
    }
    return m;
  }

  void take_experts(LayerWeights& w, const std::string& at) {
    bool together = t.has(at + "mlp.experts.gate_up_proj");
    const std::string block = at + (together ? "mlp." : "block_sparse_moe.");
    ExpertMatrices m =
        together ? experts_together(block + "experts.") : experts_apart(block + "experts.");
    w.W_router = take_linear(t, block + "gate", c.d_model, c.experts->count);
    w.b_router = zeros({c.experts->count}, t.dtype());
    w.W_gate = transposed(m.gate);
    w.W_in = transposed(m.in);
    for (Array& out : m.out) out = transposed({out});
    w.W_out = joined(m.out).reshaped({c.n_neurons(), c.d_model});
    w.b_gate = w.b_in = zeros({c.n_neurons()}, t.dtype());
    w.b_out = zeros({c.d_model}, t.dtype());
  }

  void take_fused(LayerWeights& w, const std::string& at) {
    std::int64_t q = c.n_heads * c.d_head, rows = q + 2 * c.n_kv_heads * c.d_head;
    w.W_QKV = take_linear(t, at + "self_attn.qkv_proj", c.d_model, rows);
    w.b_QKV = take_bias(t, at + "self_attn.qkv_proj", rows, c.biases.qkv);
    w.W_O = take_linear(t, at + "self_attn.o_proj", q, c.d_model);
    w.b_O = take_bias(t, at + "self_attn.o_proj", c.d_model, c.biases.attn_out);
    Array both = t.take(at + "mlp.gate_up_proj.weight", {2 * c.d_mlp, c.d_model});
    w.W_gate = transposed({both.rows(0, c.d_mlp)});
    w.W_in = transposed({both.rows(c.d_mlp, 2 * c.d_mlp)});
    w.b_gate = w.b_in = zeros({c.d_mlp}, t.dtype());
  }

  const Config& c;
  TensorSource& t;
  StoredProjections stored;
};

}  // namespace

Weights weights_as_llama(const Config& config, TensorSource& tensors, StoredProjections stored) {
  // The trunk's own files have bare names; the language model's hang below "model.".
  const std::string prefix = tensors.has("embed_tokens.weight") ? "" : "model.";
  const std::string embedding = prefix + "embed_tokens.weight";
  Layout layout(config, tensors, stored);
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E =
      scaled(tensors.take(embedding, {config.d_vocab, config.d_model}), config.embed_scale);
  for (std::int64_t l = 0; l < config.n_layers; ++l)
    weights.layers.push_back(layout.layer(prefix + "layers." + std::to_string(l) + "."));
  layout.take_norm(weights.ln_final_w, weights.ln_final_b, prefix + "norm");
  take_unembedding(weights, tensors, "lm_head", embedding);
  return weights;
}

}  // namespace lenscpp
