// GPT-2 as transformers' configuration_gpt2.py and modeling_gpt2.py define it.
#include <utility>

#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

// config.json of a GPT2LMHeadModel or GPT2Model, in today's and older spellings.
Config gpt2_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "GPT2LMHeadModel", "GPT2Model");

  Config config{};
  config.family = "gpt2";
  config.n_layers = fields.dimension({"n_layer", "num_hidden_layers"}, kMostLayers);
  config.n_heads = fields.dimension({"n_head", "num_attention_heads"}, kWidest);
  config.n_kv_heads = config.n_heads;
  config.d_model = fields.dimension({"n_embd", "hidden_size"}, kWidest);
  if (config.d_model % config.n_heads != 0)
    fields.refuse("n_embd", "is " + std::to_string(config.d_model) + ", a multiple of n_head, " +
                                std::to_string(config.n_heads) + ", is allowed");
  config.d_head = config.d_model / config.n_heads;
  config.d_mlp = fields.optional_dimension({"n_inner"}, 4 * kWidest).value_or(4 * config.d_model);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx =
      fields.dimension({"n_positions", "max_position_embeddings", "n_ctx"}, kLongestContext);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"activation_function"}, "gelu_new");
  config.positions = PositionKind::learned;
  config.topology = Topology::sequential;
  config.scale_attn_by_sqrt_d_head = fields.flag({"scale_attn_weights"}, true);
  config.scale_attn_by_inverse_layer = fields.flag({"scale_attn_by_inverse_layer_idx"}, false);
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gpt2_weights(const Config& config, TensorSource& tensors) {
  const std::int64_t d_model = config.d_model, d_mlp = config.d_mlp;
  // GPT2Model's own files have bare names; GPT2LMHeadModel's hang below "transformer.".
  const std::string prefix = tensors.has("wte.weight") ? "" : "transformer.";
  auto take = [&](const std::string& name, const Shape& shape) {
    return tensors.take(prefix + name, shape);
  };

  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = take("wte.weight", {config.d_vocab, d_model});
  weights.W_pos = take("wpe.weight", {config.n_ctx, d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string h = "h." + std::to_string(l) + ".";
    LayerWeights layer;
    layer.ln1_w = take(h + "ln_1.weight", {d_model});
    layer.ln1_b = take(h + "ln_1.bias", {d_model});
    layer.W_QKV = take(h + "attn.c_attn.weight", {d_model, 3 * d_model});
    layer.b_QKV = take(h + "attn.c_attn.bias", {3 * d_model});
    layer.W_O = take(h + "attn.c_proj.weight", {d_model, d_model});
    layer.b_O = take(h + "attn.c_proj.bias", {d_model});
    layer.ln2_w = take(h + "ln_2.weight", {d_model});
    layer.ln2_b = take(h + "ln_2.bias", {d_model});
    layer.W_in = take(h + "mlp.c_fc.weight", {d_model, d_mlp});
    layer.b_in = take(h + "mlp.c_fc.bias", {d_mlp});
    layer.W_out = take(h + "mlp.c_proj.weight", {d_mlp, d_model});
    layer.b_out = take(h + "mlp.c_proj.bias", {d_model});
    weights.layers.push_back(std::move(layer));
    // Old files store the causal mask and the number put where it is off; both are always the same.
    tensors.ignore(prefix + h + "attn.bias");
    tensors.ignore(prefix + h + "attn.masked_bias");
  }
  weights.ln_final_w = take("ln_f.weight", {d_model});
  weights.ln_final_b = take("ln_f.bias", {d_model});

  take_unembedding(weights, tensors, "lm_head", prefix + "wte.weight");
  return weights;
}

}  // namespace lenscpp
