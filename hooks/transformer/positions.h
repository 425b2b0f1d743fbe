// What the positions of a run turn queries and keys by, and how far ALiBi lowers scores: small
// tables, made on the host in float64 and uploaded, so that no device's cosine is trusted.
#pragma once

#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"

namespace lenscpp {

/// Cosines and sines, [pos, pair], rounded once to `dtype`.
struct TurnTables {
  Array cos, sin;
};
/// For each position and pair: position times the frequency of the pair (arXiv 2104.09864), scaled
/// as `rope` says.
TurnTables turn_tables(const Rotary& rotary, const Rope& rope,
                       const std::vector<std::int64_t>& positions, DType dtype);
/// slope (key - query) where key <= query, 0 elsewhere (arXiv 2108.12409): [head, query, key].
Array alibi_table(std::int64_t heads, std::int64_t queries, std::int64_t keys,
                  std::int64_t first_query, DType dtype);

}  // namespace lenscpp
