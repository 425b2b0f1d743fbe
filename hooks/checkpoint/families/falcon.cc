// Falcon (arXiv 2311.16867) as transformers' modeling_falcon.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config falcon_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "FalconForCausalLM", "FalconModel");
  Config config{};
  config.family = "falcon";
  config.n_layers = fields.dimension({"num_hidden_layers", "n_layer"}, kMostLayers);
  config.n_heads = fields.dimension({"num_attention_heads", "n_head"}, kWidest);
  config.d_model = fields.dimension({"hidden_size", "n_embed"}, kWidest);
  config.d_head = head_of(fields, config, "hidden_size");
  bool grouped = fields.flag({"new_decoder_architecture"}, false),
       one_key = fields.flag({"multi_query"}, true),
       parallel = fields.flag({"parallel_attn"}, true) || grouped;
  auto kv_heads = fields.optional_dimension({"num_kv_heads", "n_head_kv"}, kWidest);
  config.n_kv_heads = grouped ? kv_heads.value_or(config.n_heads) : one_key ? 1 : config.n_heads;
  if (config.n_heads % config.n_kv_heads != 0)
    fields.refuse("num_kv_heads", "is " + std::to_string(config.n_kv_heads) +
                                      ", a divisor of num_attention_heads is allowed");
  config.d_mlp =
      fields.optional_dimension({"ffn_hidden_size"}, 4 * kWidest).value_or(4 * config.d_model);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx =
      fields.optional_dimension({"max_position_embeddings"}, kLongestContext).value_or(2048);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"activation"}, "gelu");
  config.topology = parallel ? Topology::parallel : Topology::sequential;
  fields.refuse_if_set("alibi", "this family's ALiBi is rounded to bfloat16; allowed: false");
  if (auto norms = fields.optional_dimension({"num_ln_in_parallel_attn"}, 2); grouped && norms == 1)
    fields.refuse("num_ln_in_parallel_attn", "is 1 in the new decoder architecture; allowed: 2");
  read_rotary(fields, config);
  bool bias = fields.flag({"bias"}, false);
  config.biases = {.qkv = bias, .attn_out = bias, .mlp = bias};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights falcon_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("word_embeddings.weight") ? "" : "transformer.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "word_embeddings.weight", {config.d_vocab, config.d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "h." + std::to_string(l) + ".";
    bool two_norms = tensors.has(at + "ln_mlp.weight");
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors,
                    at + (two_norms ? "ln_attn" : "input_layernorm"), config.d_model);
    if (config.topology == Topology::parallel && !two_norms)
      layer.ln2_w = layer.ln1_w, layer.ln2_b = layer.ln1_b;  // one norm for both
    else
      take_layer_norm(layer.ln2_w, layer.ln2_b, tensors,
                      at + (two_norms ? "ln_mlp" : "post_attention_layernorm"), config.d_model);
    take_grouped_attention(layer, tensors, config, at + "self_attention.query_key_value",
                           at + "self_attention.dense");
    take_mlp(layer, tensors, config, at + "mlp.dense_h_to_4h", at + "mlp.dense_4h_to_h");
    weights.layers.push_back(std::move(layer));
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "ln_f", config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "word_embeddings.weight");
  return weights;
}

}  // namespace lenscpp
