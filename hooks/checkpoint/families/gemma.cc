// Gemma (arXiv 2403.08295) as transformers' modeling_gemma.py defines it.
#include "hooks/checkpoint/families/gemma_parts.h"
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config gemma_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "GemmaForCausalLM", "GemmaModel");
  Config config{};
  config.family = "gemma";
  read_heads(fields, config, 16);
  if (!document.contains("head_dim")) config.d_head = 256;
  read_sizes(fields, config);
  read_gemma_parts(fields, config);
  read_rotary(fields, config);
  // hidden_act "gelu" was a mistake of the first files: the model is trained with the other one.
  config.activation = read_activation(fields, {"hidden_act"}, "gelu_pytorch_tanh");
  if (config.activation == Activation::gelu_erf) config.activation = Activation::gelu_tanh;
  if (fields.text({"hidden_activation"}))
    config.activation = read_activation(fields, {"hidden_activation"}, "gelu_pytorch_tanh");
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gemma_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
