// A model's weights under TransformerLens's names and shapes, for looking at.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/checkpoint/weights.h"

namespace lenscpp {

/// W_E [d_vocab, d_model], W_pos [n_ctx, d_model], W_U [d_model, d_vocab], b_U [d_vocab]; over all
/// layers W_Q W_K W_V [layer, head, d_model, d_head], W_O [layer, head, d_head, d_model], b_Q b_K
/// b_V [layer, head, d_head], b_O [layer, d_model], W_in [layer, d_model, d_mlp], b_in [layer,
/// d_mlp], W_out [layer, d_mlp, d_model], b_out [layer, d_model]. Where there are experts W_router
/// [layer, d_model, expert], and W_gate, b_gate, W_in, b_in and W_out have an axis expert behind
/// layer. As processed, in the model's dtype; a copy. Throws std::invalid_argument naming what
/// there is.
Array weight_view(const Weights& weights, std::string_view name);
std::vector<std::string> weight_names();

/// Columns of W_U, one a token: [token, d_model]. Throws std::out_of_range.
Array residual_directions(const Weights& weights, const std::vector<std::int64_t>& tokens);

}  // namespace lenscpp
