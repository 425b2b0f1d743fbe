// The families: two functions each, in the file of its name.
#pragma once

#include "hooks/checkpoint/families/family.h"

namespace lenscpp {

Config bert_config(const nlohmann::json& document, const std::string& origin);
Weights bert_weights(const Config& config, TensorSource& tensors);

Config bloom_config(const nlohmann::json& document, const std::string& origin);
Weights bloom_weights(const Config& config, TensorSource& tensors);

Config distilbert_config(const nlohmann::json& document, const std::string& origin);
Weights distilbert_weights(const Config& config, TensorSource& tensors);

Config falcon_config(const nlohmann::json& document, const std::string& origin);
Weights falcon_weights(const Config& config, TensorSource& tensors);

Config gemma_config(const nlohmann::json& document, const std::string& origin);
Weights gemma_weights(const Config& config, TensorSource& tensors);

Config gemma2_config(const nlohmann::json& document, const std::string& origin);
Weights gemma2_weights(const Config& config, TensorSource& tensors);

Config gemma3_config(const nlohmann::json& document, const std::string& origin);
Weights gemma3_weights(const Config& config, TensorSource& tensors);

Config gpt2_config(const nlohmann::json& document, const std::string& origin);
Weights gpt2_weights(const Config& config, TensorSource& tensors);

Config gpt_neo_config(const nlohmann::json& document, const std::string& origin);
Weights gpt_neo_weights(const Config& config, TensorSource& tensors);

Config gpt_neox_config(const nlohmann::json& document, const std::string& origin);
Weights gpt_neox_weights(const Config& config, TensorSource& tensors);

Config gptj_config(const nlohmann::json& document, const std::string& origin);
Weights gptj_weights(const Config& config, TensorSource& tensors);

Config llama_config(const nlohmann::json& document, const std::string& origin);
Weights llama_weights(const Config& config, TensorSource& tensors);

Config mistral_config(const nlohmann::json& document, const std::string& origin);
Weights mistral_weights(const Config& config, TensorSource& tensors);

Config mixtral_config(const nlohmann::json& document, const std::string& origin);
Weights mixtral_weights(const Config& config, TensorSource& tensors);

Config olmo2_config(const nlohmann::json& document, const std::string& origin);
Weights olmo2_weights(const Config& config, TensorSource& tensors);

Config opt_config(const nlohmann::json& document, const std::string& origin);
Weights opt_weights(const Config& config, TensorSource& tensors);

Config phi_config(const nlohmann::json& document, const std::string& origin);
Weights phi_weights(const Config& config, TensorSource& tensors);

Config phi3_config(const nlohmann::json& document, const std::string& origin);
Weights phi3_weights(const Config& config, TensorSource& tensors);

Config qwen2_config(const nlohmann::json& document, const std::string& origin);
Weights qwen2_weights(const Config& config, TensorSource& tensors);

Config qwen3_config(const nlohmann::json& document, const std::string& origin);
Weights qwen3_weights(const Config& config, TensorSource& tensors);

Config stablelm_config(const nlohmann::json& document, const std::string& origin);
Weights stablelm_weights(const Config& config, TensorSource& tensors);

}  // namespace lenscpp
