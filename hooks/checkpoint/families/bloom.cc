// BLOOM (arXiv 2211.05100) as transformers' modeling_bloom.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config bloom_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "BloomForCausalLM", "BloomModel");
  Config config{};
  config.family = "bloom";
  config.n_layers = fields.dimension({"n_layer", "num_hidden_layers"}, kMostLayers);
  config.n_heads = config.n_kv_heads = fields.dimension({"n_head", "num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"hidden_size", "n_embed"}, kWidest);
  config.d_head = head_of(fields, config, "hidden_size");
  config.d_mlp = 4 * config.d_model;
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  // ALiBi ends nowhere; this is what the models were trained on.
  config.n_ctx = fields.optional_dimension({"seq_length"}, kLongestContext).value_or(2048);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = Activation::gelu_tanh;
  config.positions = PositionKind::alibi;
  config.topology = Topology::sequential;
  config.embed_norm = true;
  fields.refuse_if_set("apply_residual_connection_post_layernorm",
                       "residuals taken behind the norm are not supported; allowed: false");
  // The same numbers in another order.
  fields.neutral({"slow_but_exact", "masked_softmax_fusion", "bias_dropout_fusion", "offset_alibi",
                  "skip_bias_add", "skip_bias_add_qkv", "attention_softmax_in_fp32", "unk_token_id",
                  "hidden_dropout_prob"});
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights bloom_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("word_embeddings.weight") ? "" : "transformer.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "word_embeddings.weight", {config.d_vocab, config.d_model});
  take_layer_norm(weights.embed_ln_w, weights.embed_ln_b, tensors,
                  prefix + "word_embeddings_layernorm", config.d_model);
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "h." + std::to_string(l) + ".";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "input_layernorm", config.d_model);
    take_grouped_attention(layer, tensors, config, at + "self_attention.query_key_value",
                           at + "self_attention.dense");
    take_layer_norm(layer.ln2_w, layer.ln2_b, tensors, at + "post_attention_layernorm",
                    config.d_model);
    take_mlp(layer, tensors, config, at + "mlp.dense_h_to_4h", at + "mlp.dense_4h_to_h");
    weights.layers.push_back(std::move(layer));
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "ln_f", config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "word_embeddings.weight");
  return weights;
}

}  // namespace lenscpp
