// What positions alone determine, in float64: angles of rotary positions and slopes of ALiBi. The
// device pass has its own.
#pragma once

#include <span>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"

namespace lenscpp {

/// Cosines and sines, [pos, pair], float64.
struct Turns {
  Array cos, sin;
};
/// For each of `positions` and each pair of `rotary`, by `rope`: transformers' definitions
/// (modeling_rope_utils.py), with nothing rounded to float32 in between.
Turns turns(const Rotary& rotary, const Rope& rope, std::span<const std::int64_t> positions);
/// -slope (query - key) where key <= query, 0 elsewhere: [head, query, key], float64. The first
/// query stands at key `first_query`. Slopes as transformers' build_alibi_tensor makes them.
Array alibi(std::int64_t heads, std::int64_t queries, std::int64_t keys, std::int64_t first_query);

}  // namespace lenscpp
