// Direct logit attribution: how much each part of the final residual stream adds to a token's
// logit, or to a difference of two. The final norm is linear once its scale is that of the run.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lens/choice.h"
#include "verify/verified_cache.h"

namespace lenscpp {

/// How the rows of a stack [component, batch, pos, d_model] stand to the cache: which positions and
/// prompts they are. The batch choice is applied to the stack here; positions were chosen before.
struct StackRows {
  Choice pos = {};
  Choice batch = {};
  bool has_batch_dim = true;  // off: the stack has no batch axis, and `batch` names the one prompt
};
struct LayerNormOptions {
  std::optional<std::int64_t> layer = {};  // unset or -1: the unembedding (n_layers)
  bool mlp_input = false;
  StackRows rows = {};
  bool recompute_ln =
      false;  // at the unembedding: through the whole final norm, each row by itself
};
/// A stack centred and divided by the scale by which the run divided that layer's input, without
/// weight and bias. Stored as what the stack's dtype accumulates in. Throws std::invalid_argument
/// for a stack of another shape, std::out_of_range for a layer, position or prompt that is not
/// there.
Array apply_ln_to_stack(const VerifiedCache& cache, const Array& stack,
                        const LayerNormOptions& options = {});

/// Token ids: one for all rows ([]), one a prompt ([batch]), or one a row ([batch, pos]).
using TokenChoice = Array;
/// What each component of a stack adds to the logit of a token, or to its logit less that of a
/// wrong one: [component, batch, pos]. The final norm's scale is the run's; its weight counts where
/// it is not folded (TransformerLens forgets it); biases belong to no component. Throws as
/// apply_ln_to_stack and for tokens beyond the vocabulary.
Array logit_attrs(const VerifiedCache& cache, const Array& stack, const TokenChoice& tokens,
                  const std::optional<TokenChoice>& wrong = {}, const StackRows& rows = {});

/// What counts as one component: a sublayer, a head (and MLPs, and b_O), or a whole block.
enum class AttributionUnit : std::uint8_t { component, head, layer };
std::string_view name_of(AttributionUnit unit);
/// Throws std::invalid_argument naming what is allowed.
AttributionUnit attribution_unit_from_name(std::string_view name);

/// The logit difference of a run, divided among what wrote it. [batch, pos] has no pos where one
/// position was chosen by an int.
struct LogitAttribution {
  AttributionUnit unit;
  std::vector<std::string> labels;  // "embed", "pos_embed", "0_attn_out" ..., "bias"
  Array values;                     // [component, batch, pos]
  Array total;                      // [batch, pos]: their sum
  Array logit_diff;                 // [batch, pos]: of the verified logits
  Array bound;                      // [batch, pos] float64: what rounding may put between the two
};

/// Divides logit(answer) - logit(wrong), or logit(answer), among embeddings, sublayers or heads
/// with their b_O, and "bias" (that of the final norm, through W_U, and b_U). Throws
/// std::invalid_argument where they do not sum to what the run computed, which an edit can bring
/// about: in a run without edits the bound is what verification allowed (rounding_bound in the
/// source). Else as decompose_resid.
LogitAttribution direct_logit_attribution(const VerifiedCache& cache, const TokenChoice& answer,
                                          const std::optional<TokenChoice>& wrong = {},
                                          AttributionUnit unit = AttributionUnit::component,
                                          const Choice& pos = {.indices = {{-1}},
                                                               .collapses = true});

}  // namespace lenscpp
