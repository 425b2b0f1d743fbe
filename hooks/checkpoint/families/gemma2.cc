// Gemma 2 (arXiv 2408.00118) as transformers' modeling_gemma2.py defines it.
#include "hooks/checkpoint/families/gemma_parts.h"
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config gemma2_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Gemma2ForCausalLM", "Gemma2Model");
  Config config{};
  config.family = "gemma2";
  read_heads(fields, config, 4);
  if (!document.contains("head_dim")) config.d_head = 256;
  read_sizes(fields, config);
  read_gemma_parts(fields, config);
  read_gemma2_parts(fields, config, document, {.scores = 50, .logits = 30});
  read_rotary(fields, config);
  fields.neutral({"hidden_act"});  // hidden_activation is what is read
  if (config.window)
    for (std::int64_t l = 0; l < config.n_layers; ++l) config.windowed_layers.push_back(l % 2 == 0);
  read_layer_types(fields, config);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gemma2_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
