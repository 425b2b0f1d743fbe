// Phi-3 and Phi-4 (arXiv 2404.14219): Llama with fused projections.
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config phi3_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Phi3ForCausalLM", "Phi3Model");
  Config config{};
  config.family = "phi3";
  read_heads(fields, config);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-5);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config);
  // Scaled angles take the trained context from here; they say so themselves where they are.
  auto trained = fields.optional_dimension({"original_max_position_embeddings"}, kLongestContext);
  if (trained && config.rotary->rope.trained_context != 0)
    config.rotary->rope.trained_context = *trained;
  config.window = fields.optional_dimension({"sliding_window"}, kLongestContext);
  config.windowed_layers.assign(static_cast<std::size_t>(config.window ? config.n_layers : 0),
                                true);
  config.biases = {.qkv = false, .attn_out = false, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights phi3_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors, StoredProjections::fused);
}

}  // namespace lenscpp
