// GPT-NeoX and Pythia (arXiv 2204.06745) as transformers' modeling_gpt_neox.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config gpt_neox_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "GPTNeoXForCausalLM", "GPTNeoXModel");
  Config config{};
  config.family = "gpt_neox";
  read_heads(fields, config);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"layer_norm_eps"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "gelu");
  config.topology =
      fields.flag({"use_parallel_residual"}, true) ? Topology::parallel : Topology::sequential;
  read_rotary(fields, config, {.share = 0.25});
  bool attention_bias = fields.flag({"attention_bias"}, true);
  config.biases = {.qkv = attention_bias, .attn_out = attention_bias, .mlp = true};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gpt_neox_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("embed_in.weight") ? "" : "gpt_neox.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "embed_in.weight", {config.d_vocab, config.d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "layers." + std::to_string(l) + ".";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "input_layernorm", config.d_model);
    take_grouped_attention(layer, tensors, config, at + "attention.query_key_value",
                           at + "attention.dense");
    take_layer_norm(layer.ln2_w, layer.ln2_b, tensors, at + "post_attention_layernorm",
                    config.d_model);
    take_mlp(layer, tensors, config, at + "mlp.dense_h_to_4h", at + "mlp.dense_4h_to_h");
    weights.layers.push_back(std::move(layer));
    for (const char* fixed : {"bias", "masked_bias", "rotary_emb.inv_freq"})  // of old files
      tensors.ignore(at + "attention." + fixed);
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "final_layer_norm",
                  config.d_model);
  take_unembedding(weights, tensors, "embed_out", prefix + "embed_in.weight");
  return weights;
}

}  // namespace lenscpp
