// The same model with other summation orders: its inner dimensions permuted, so that every product
// and mean adds the same terms in another order. What honest arithmetic may come out at, found
// without a reference and without a bound.
#pragma once

#include <cstdint>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/weights.h"
#include "hooks/hook_point.h"

namespace lenscpp {

/// Seeded permutations of d_model (everywhere alike), of d_mlp in each layer, and of d_head in each
/// key-value head: one for queries and keys, one for values and what reads them.
class Reordering {
 public:
  Reordering(const Config& config, std::uint64_t seed);

  /// Weights that compute the same function: without rounding, not a digit would differ.
  Weights apply(const Weights& weights) const;
  /// A tensor of a run of such weights, its axes back in the order of the model's own.
  Array undo(const TensorId& id, const Array& value) const;

 private:
  using Order = std::vector<std::int64_t>;  // what stands at i was at order[i]
  struct Layer {
    Order mlp;
    std::vector<Order> queries_keys, values;  // one a key-value head
  };
  /// `heads` heads laid end to end, each in the order of its key-value head.
  Order end_to_end(const std::vector<Order>& of_heads, std::int64_t heads) const;
  Array heads_undone(const std::vector<Order>& of_heads, const Array& value) const;

  Config config_;
  Order model_;
  std::vector<Layer> layers_;
};

}  // namespace lenscpp
