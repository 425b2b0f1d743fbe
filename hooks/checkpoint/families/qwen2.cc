// Qwen2 (arXiv 2407.10671): Llama with biases of queries, keys and values.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/qwen_windows.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config qwen2_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Qwen2ForCausalLM", "Qwen2Model");
  Config config{};
  config.family = "qwen2";
  read_heads(fields, config, 32);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-6);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config);
  read_qwen_windows(fields, config);
  config.biases = {.qkv = true, .attn_out = false, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights qwen2_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
