// Phi-1, 1.5 and 2 (arXiv 2309.05463) as transformers' modeling_phi.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config phi_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "PhiForCausalLM", "PhiModel");
  Config config{};
  config.family = "phi";
  read_heads(fields, config);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"layer_norm_eps"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "gelu_new");
  config.topology = Topology::parallel;
  read_rotary(fields, config, {.share = 0.5});
  fields.refuse_if_set("qk_layernorm", "LayerNorms of queries and keys are not supported");
  config.biases = {.qkv = true, .attn_out = true, .mlp = true, .unembedding = true};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights phi_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("embed_tokens.weight") ? "" : "model.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "embed_tokens.weight", {config.d_vocab, config.d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "layers." + std::to_string(l) + ".", attn = at + "self_attn.";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "input_layernorm", config.d_model);
    layer.ln2_w = layer.ln1_w, layer.ln2_b = layer.ln1_b;  // one norm for both
    take_attention(layer, tensors, config,
                   {attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "dense"});
    take_mlp(layer, tensors, config, at + "mlp.fc1", at + "mlp.fc2");
    weights.layers.push_back(std::move(layer));
    tensors.ignore(attn + "rotary_emb.inv_freq");
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "final_layernorm",
                  config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "embed_tokens.weight");
  return weights;
}

}  // namespace lenscpp
