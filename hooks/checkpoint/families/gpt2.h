// GPT-2: LayerNorm before attention and MLP, learned positions, every matrix stored [in, out].
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "hooks/checkpoint/config.h"
#include "hooks/checkpoint/families/family.h"

namespace lenscpp {

/// config.json of a GPT2LMHeadModel or GPT2Model, in today's and older spellings (transformers'
/// configuration_gpt2.py). Throws std::invalid_argument as read_config says.
Config gpt2_config(const nlohmann::json& document, const std::string& origin);

/// Its tensors, with and without the prefix "transformer."; attention masks among them are ignored.
Weights gpt2_weights(const Config& config, TensorSource& tensors);

}  // namespace lenscpp
