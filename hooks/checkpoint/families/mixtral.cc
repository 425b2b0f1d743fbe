// Mixtral (arXiv 2401.04088): Mistral with experts.
#include <algorithm>

#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config mixtral_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "MixtralForCausalLM", "MixtralModel");
  Config config{};
  config.family = "mixtral";
  read_heads(fields, config, 8);
  read_sizes(fields, config);
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-5);
  config.norm = NormKind::rms_norm;
  config.activation = read_activation(fields, {"hidden_act"}, "silu");
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  read_rotary(fields, config, {.base = 1e6});
  config.window = fields.optional_dimension({"sliding_window"}, kLongestContext);
  config.windowed_layers.assign(static_cast<std::size_t>(config.window ? config.n_layers : 0),
                                true);
  read_experts(fields, config);
  // Of training: noise of the router's inputs, and a loss that keeps experts equally busy.
  fields.neutral({"router_jitter_noise", "router_aux_loss_coef", "output_router_logits"});
  config.biases = {.qkv = false, .attn_out = false, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights mixtral_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
