// OPT (arXiv 2205.01068) as transformers' modeling_opt.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config opt_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "OPTForCausalLM", "OPTModel");
  Config config{};
  config.family = "opt";
  config.n_layers = fields.dimension({"num_hidden_layers"}, kMostLayers);
  config.n_heads = config.n_kv_heads = fields.dimension({"num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"hidden_size"}, kWidest);
  config.d_head = head_of(fields, config, "hidden_size");
  config.d_mlp = fields.dimension({"ffn_dim"}, 4 * kWidest);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx = fields.dimension({"max_position_embeddings"}, kLongestContext);
  config.norm_eps = 1e-5;  // of torch's LayerNorm: no field says otherwise
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"activation_function"}, "relu");
  config.positions = PositionKind::learned;
  config.topology = Topology::sequential;
  auto projected = fields.optional_dimension({"word_embed_proj_dim"}, kWidest);
  if (projected.value_or(config.d_model) != config.d_model)
    fields.refuse("word_embed_proj_dim", "is " + std::to_string(*projected) +
                                             "; projected embeddings are not supported, allowed: " +
                                             std::to_string(config.d_model));
  for (auto [name, needed] :
       {std::pair{"do_layer_norm_before", true}, std::pair{"enable_bias", true},
        std::pair{"layer_norm_elementwise_affine", true},
        std::pair{"_remove_final_layer_norm", false}})
    if (fields.flag({name}, needed) != needed)
      fields.refuse(name, needed ? "is false; allowed: true" : "is true; allowed: false");
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights opt_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("decoder.embed_tokens.weight")         ? "decoder."
                             : tensors.has("model.decoder.embed_tokens.weight") ? "model.decoder."
                                                                                : "";
  constexpr std::int64_t kFirstPosition = 2;  // the first rows of the table belong to no position
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "embed_tokens.weight", {config.d_vocab, config.d_model});
  weights.W_pos =
      tensors
          .take(prefix + "embed_positions.weight", {config.n_ctx + kFirstPosition, config.d_model})
          .rows(kFirstPosition, kFirstPosition + config.n_ctx);
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "layers." + std::to_string(l) + ".", attn = at + "self_attn.";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "self_attn_layer_norm", config.d_model);
    take_attention(layer, tensors, config,
                   {attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "out_proj"});
    take_layer_norm(layer.ln2_w, layer.ln2_b, tensors, at + "final_layer_norm", config.d_model);
    take_mlp(layer, tensors, config, at + "fc1", at + "fc2");
    weights.layers.push_back(std::move(layer));
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "final_layer_norm",
                  config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "embed_tokens.weight");
  return weights;
}

}  // namespace lenscpp
