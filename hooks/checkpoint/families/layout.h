// The names of tensors that most families since 2023 have taken over from Llama's.
#pragma once

#include "hooks/checkpoint/families/decoder.h"

namespace lenscpp {

/// How q, k, v and gate, up are stored.
enum class StoredProjections { apart, fused };

/// model.layers.N.self_attn.q_proj, .mlp.gate_proj and so on. What there is follows from the
/// config: which norms, their biases, biases of products, a scaled embedding, experts (under
/// Mixtral's names).
Weights weights_as_llama(const Config& config, TensorSource& tensors,
                         StoredProjections stored = StoredProjections::apart);

}  // namespace lenscpp
