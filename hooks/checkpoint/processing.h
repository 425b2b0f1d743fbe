// Weight processing: changes of basis that leave the log-probabilities as they are and make the
// inside easier to read. The exact steps of TransformerLens 3.x for LayerNorm models.
#pragma once

#include <vector>

#include "hooks/checkpoint/weights.h"
#include "hooks/parallel.h"

namespace lenscpp {

/// Which steps to take, in this order.
struct Processing {
  bool fold_ln = true;  // norm weights and biases into the next matrix, which is centred
  bool center_writing_weights = true;  // everything written to the residual stream has mean zero
  bool center_unembed = true;          // logits lose a constant a position
  bool fold_value_biases = true;       // b_V through W_O into b_O

  static Processing none() { return {false, false, false, false}; }
  bool any() const {
    return fold_ln || center_writing_weights || center_unembed || fold_value_biases;
  }
  bool operator==(const Processing&) const = default;
};

/// The steps that leave a model's log-probabilities as they are: no centring of what RMSNorms read,
/// nor of logits with a softcap; no folding where norms stand behind attention and MLP.
Processing applicable(Processing steps, const Config& config);
/// The kind of a norm whose weight and bias have been folded.
NormKind folded(NormKind norm);

/// Weights processed by those of the steps that are applicable: computed in float64, rounded once
/// to weights.dtype. The input is not changed. After fold_ln, config.norm is a _pre kind and the
/// norms' arrays are empty. To round once in all, load in the stored dtype or wider, process, then
/// cast. Throws std::invalid_argument for fold_ln of folded weights, and for a result that
/// overflows the dtype. Threads change no bit.
Weights process(const Weights& weights, const Processing& processing,
                const ParallelFor& parallel = serial_for);

}  // namespace lenscpp
