// Qwen3 (arXiv 2505.09388): Llama with norms of queries and keys.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/qwen_windows.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config qwen3_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Qwen3ForCausalLM", "Qwen3Model");
  Config config{};
  config.family = "qwen3";
  read_heads(fields, config, 32);
  if (!document.contains("head_dim")) config.d_head = 128;
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-6);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config);
  read_qwen_windows(fields, config);
  config.qk_norm = QkNorm::per_head;
  bool attention_bias = fields.flag({"attention_bias"}, false);
  config.biases = {.qkv = attention_bias, .attn_out = attention_bias, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights qwen3_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
