// Llama (arXiv 2302.13971) as transformers' modeling_llama.py defines it.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config llama_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "LlamaForCausalLM", "LlamaModel");
  Config config{};
  config.family = "llama";
  read_heads(fields, config);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-6);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config);
  bool attention_bias = fields.flag({"attention_bias"}, false);
  config.biases = {
      .qkv = attention_bias, .attn_out = attention_bias, .mlp = fields.flag({"mlp_bias"}, false)};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights llama_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
