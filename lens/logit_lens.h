// The logit lens: what each layer's residual stream would predict if it were unembedded
// (nostalgebraist 2020). Computed on the host from verified activations.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "verify/verified_cache.h"

namespace lenscpp {

/// Which activations are read through the lens, and how.
struct LogitLensOptions {
  /// resid_pre, resid_mid, resid_post, attn_out or mlp_out.
  Site site = Site::resid_pre;
  /// Residuals: through the final norm, its scale recomputed for each layer. Contributions
  /// (attn_out, mlp_out): centred and divided by the run's own final scale (frozen), without
  /// biases. Off: W_U alone.
  bool apply_ln = true;
};

/// A token and how it stands in one prediction.
struct RankedToken {
  std::int64_t token;
  double logit, probability;
};

/// Logits by layer. Row 0 is the first layer; for resid_pre one more row holds the final residual.
class LogitLens {
 public:
  LogitLens(std::vector<std::string> labels, Array logits, Site site, bool apply_ln)
      : labels_(std::move(labels)), logits_(std::move(logits)), site_(site), apply_ln_(apply_ln) {}

  const std::vector<std::string>& labels() const { return labels_; }  // "0_pre", ..., "final_post"
  const Array& logits() const { return logits_; }  // [layer, batch, pos, d_vocab] float32
  Site site() const { return site_; }
  bool apply_ln() const { return apply_ln_; }
  /// Softmax over the vocabulary: [layer, batch, pos, d_vocab] float32.
  Array probs() const;
  /// [layer, batch, pos] int64: how many tokens have a larger logit. Throws std::out_of_range.
  Array rank(std::int64_t token) const;
  /// [layer, batch, pos] float32, in nats.
  Array entropy() const;
  /// The k most likely tokens of one row; ties in order of id. Negative indices count from the end.
  /// Throws std::out_of_range naming the index and what is allowed.
  std::vector<RankedToken> top_k(std::int64_t layer, std::int64_t batch, std::int64_t pos,
                                 std::int64_t k) const;

 private:
  std::vector<std::string> labels_;
  Array logits_;
  Site site_;
  bool apply_ln_;
};

/// Throws std::invalid_argument for another site, or when the cache lacks an activation that is
/// needed (naming it); NotVerified when bytes have changed.
LogitLens logit_lens(const VerifiedCache& cache, const LogitLensOptions& options = {});

}  // namespace lenscpp
