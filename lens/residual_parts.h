// The parts of a residual stream, one at a time and in float64: what stacks (decomposition.h) and
// attributions (attribution.h) are made from. Not for users.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lens/choice.h"
#include "verify/reference/ops.h"
#include "verify/verified_cache.h"

namespace lenscpp {

/// The chosen elements of an axis. Throws std::out_of_range naming `where` and `what`,
/// std::invalid_argument where nothing is chosen or a collapsing choice is not one element.
std::vector<std::int64_t> chosen(std::string_view where, std::string_view what,
                                 const Choice& choice, std::int64_t extent);

/// Throws std::invalid_argument, opened by `where`, for a model whose residual stream is no sum.
void require_additive(const Config& config, const std::string& where);
/// The same, and where attention and MLP return what is normed as a whole before it is added.
void require_additive_parts(const Config& config, const std::string& where);

/// A labelled part of the residual stream: [batch * pos, d_model] when asked for.
struct Part {
  std::string label;
  std::function<Mat()> value;
};

/// Reads parts at chosen positions out of a cache. `where` opens every error. Errors of reading:
/// std::invalid_argument naming the activation that was not kept, NotVerified.
class ResidualParts {
 public:
  ResidualParts(const VerifiedCache& cache, std::string where, const Choice& pos);

  const std::string& where() const { return where_; }
  const VerifiedCache& cache() const { return cache_; }
  const Config& config() const { return cache_.config(); }
  /// Of the run.
  DType dtype() const { return dtype_from_name(cache_.record().dtype); }
  /// Of a tensor of the run.
  Contract contract(Site site) const {
    return contract_of(site, dtype(), cache_.record().matmul_precision);
  }
  /// Throws std::invalid_argument for a run that was loaded without its model.
  const Weights& weights() const { return cache_.weights(); }
  std::int64_t batch() const { return cache_.record().batch; }
  /// How many positions the cache holds, and which of them were chosen.
  std::int64_t extent() const { return extent_; }
  const std::vector<std::int64_t>& pos() const { return pos_; }
  std::int64_t rows() const { return batch() * static_cast<std::int64_t>(pos_.size()); }
  /// [batch, pos, ...last], without pos where the choice drops it.
  Shape shape(const Shape& last) const;

  /// The layer that `layer` means: unset or -1 the unembedding (n_layers). Throws
  /// std::out_of_range, and std::invalid_argument for the input of an MLP after the last layer.
  std::int64_t up_to(std::optional<std::int64_t> layer, bool mlp_input = false) const;

  /// An activation as it was verified.
  const Array& activation(Site site, std::int64_t layer = 0) const;
  /// Its chosen rows: [batch * pos, everything else].
  Mat rows_of(Site site, std::int64_t layer = 0) const;

  /// What the first residual is made of: the embedding, and that of the position where there is
  /// one; behind a norm of their own, they are one part.
  std::vector<Part> embeddings() const;
  Part attn_out(std::int64_t layer) const;
  Part mlp_out(std::int64_t layer) const;
  /// z W_O per head, or hook_result where it was edited. Together with the bias they are attn_out.
  std::vector<Part> heads(std::int64_t layer) const;
  Part bias(std::string label, const std::vector<Array>& biases) const;
  /// post_n W_out,n of each chosen neuron. Together with b_out they are mlp_out.
  std::vector<Part> neurons(std::int64_t layer, const std::vector<std::int64_t>& which) const;
  /// Whether an edit or a hook of the run changed an activation.
  bool edited(Site site, std::int64_t layer) const;

  /// The scale by which the run divided the input of a layer's attention, of its MLP, or of the
  /// unembedding (n_layers): one a row.
  Eigen::VectorXd norm_scale(std::int64_t layer, bool mlp_input) const;

 private:
  void check_padding() const;
  VerifiedCache cache_;
  std::string where_;
  std::int64_t extent_;
  bool collapses_;
  std::vector<std::int64_t> pos_;
};

/// Rows with their means subtracted where the kind of norm does that.
Mat centred(Mat x, NormKind kind);
/// Rows through the final norm with its own scale, weight and bias.
Mat through_final_norm(Mat x, const Weights& weights);

}  // namespace lenscpp
