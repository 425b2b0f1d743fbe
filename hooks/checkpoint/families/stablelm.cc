// StableLM as transformers' modeling_stablelm.py defines it.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config stablelm_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "StableLmForCausalLM", "StableLmModel");
  Config config{};
  config.family = "stablelm";
  read_heads(fields, config, 32);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"layer_norm_eps"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology =
      fields.flag({"use_parallel_residual"}, false) ? Topology::parallel : Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config, {.share = 0.25});
  fields.refuse_if_set("qk_layernorm", "LayerNorms of queries and keys are not supported");
  config.biases = {.qkv = fields.flag({"use_qkv_bias"}, false), .attn_out = false, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights stablelm_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
