// What positions alone determine, in float64: angles of rotary positions and slopes of ALiBi. The
// device pass has its own.
#pragma once

#include <span>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"

namespace lenscpp {

/// Cosines and sines, [position, pair], float64.
struct Turns {
  Array cos, sin;
};
/// For each of `positions` and each pair of `rotary`, by `rope`: transformers' definitions
/// (modeling_rope_utils.py), with nothing rounded to float32 in between. Each `pos` of them are a
/// prompt, whose own length dynamic angles follow.
Turns turns(const Rotary& rotary, const Rope& rope, std::span<const std::int64_t> positions,
            std::int64_t pos);
/// ALiBi's slope of each head, as transformers' build_alibi_tensor makes them: [head], float64.
Array alibi_slopes(std::int64_t heads);

}  // namespace lenscpp
