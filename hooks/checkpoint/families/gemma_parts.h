// What the Gemma family has in common.
#pragma once

#include <optional>

#include "hooks/checkpoint/families/decoder.h"

namespace lenscpp {

/// RMSNorms that multiply by 1 + weight, embeddings times sqrt(d_model), gated tanh GELU, no biases
/// unless attention_bias, tied.
void read_gemma_parts(Fields& fields, Config& config);
/// Softcaps where config.json names none.
struct GemmaSoftcaps {
  std::optional<double> scores, logits;
};
/// Sandwich norms, query_pre_attn_scalar, softcaps and the window of Gemma 2 and 3.
void read_gemma2_parts(Fields& fields, Config& config, const nlohmann::json& document,
                       const GemmaSoftcaps& absent);

}  // namespace lenscpp
