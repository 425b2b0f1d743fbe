// OLMo 2 (arXiv 2501.00656): norms behind attention and MLP, and of all queries and keys.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config olmo2_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Olmo2ForCausalLM", "Olmo2Model");
  Config config{};
  config.family = "olmo2";
  read_heads(fields, config);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-5);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  config.norm_placement = NormPlacement::after;
  config.qk_norm = QkNorm::whole;
  read_rotary(fields, config);
  bool attention_bias = fields.flag({"attention_bias"}, false);
  config.biases = {.qkv = attention_bias, .attn_out = attention_bias, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights olmo2_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
