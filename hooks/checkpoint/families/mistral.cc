// Mistral (arXiv 2310.06825): Llama with a window in every layer.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config mistral_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "MistralForCausalLM", "MistralModel");
  Config config{};
  config.family = "mistral";
  read_heads(fields, config, 8);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-6);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config);
  config.window = fields.optional_dimension({"sliding_window"}, kLongestContext);
  if (!fields.has("sliding_window")) config.window = 4096;  // null says that there is none
  config.windowed_layers.assign(static_cast<std::size_t>(config.window ? config.n_layers : 0),
                                true);
  config.biases = {.qkv = false, .attn_out = false, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights mistral_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
