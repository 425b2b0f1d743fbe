// What a residual stream is made of: sublayers, heads or neurons, stacked under TransformerLens's
// labels. Computed on the host in float64 from verified activations and rounded once: to float64
// for a float64 model, to float32 for all others.
//
// All throw std::invalid_argument naming an activation that the run did not keep,
// std::out_of_range for a layer, position or neuron that is not there, NotVerified when bytes have
// changed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lens/choice.h"
#include "verify/verified_cache.h"

namespace lenscpp {

/// How many prompts and positions there are to choose from: pos_slice may have kept fewer than were
/// run.
struct HeldExtents {
  std::int64_t batch, pos;
};
HeldExtents held_extents(const VerifiedCache& cache);

/// Parts of a residual stream: [component, batch, pos, d_model], without pos where one position was
/// chosen by an int, the last axis being that of a projection where one is given.
struct Stack {
  std::vector<std::string> labels;  // one a component
  Array values;
};

/// Layers unset or -1 mean the unembedding's input (n_layers); `mlp_input`: up to the input of that
/// layer's MLP instead of its attention. `apply_ln`: centred and divided by the scale by which the
/// run divided that input (frozen), without weight and bias.
struct AccumulatedOptions {
  std::optional<std::int64_t> layer = {};
  bool incl_mid = false;
  bool apply_ln = false;  // up to the unembedding: through the final norm, recomputed for each row
  Choice pos = {};
  bool mlp_input = false;
};
/// The residual stream at each layer: "0_pre", "0_mid", ..., "final_post".
Stack accumulated_resid(const VerifiedCache& cache, const AccumulatedOptions& options = {});

enum class ResidMode : std::uint8_t { all, mlp, attn };
struct DecomposeOptions {
  std::optional<std::int64_t> layer = {};
  bool mlp_input = false;
  ResidMode mode = ResidMode::all;
  bool apply_ln = false;
  Choice pos = {};
  bool incl_embeds = true;
};
/// What was written into the residual stream: "embed", "pos_embed", "0_attn_out", "0_mlp_out", ...
/// All of them sum to the residual.
Stack decompose_resid(const VerifiedCache& cache, const DecomposeOptions& options = {});

struct HeadOptions {
  std::optional<std::int64_t> layer = {};
  bool incl_remainder = false;  // one more component: the residual less all others
  Choice pos = {};
  bool apply_ln = false;
};
/// What each head wrote, z W_O without b_O: "L0H0", "L0H1", ..., "remainder". A run that edited
/// hook_result must have kept it.
Stack stack_head_results(const VerifiedCache& cache, const HeadOptions& options = {});

struct NeuronOptions {
  std::optional<std::int64_t> layer = {};
  Choice pos = {};
  Choice neurons = {};
  bool incl_remainder = false;
  bool apply_ln = false;
  Array project_output_onto = {};  // [d_model] or [d_model, output]
};
/// What each neuron wrote, without b_out: "L0N0", ..., "remainder".
Stack stack_neuron_results(const VerifiedCache& cache, const NeuronOptions& options = {});
/// One layer's: [batch, pos, neuron, d_model], without the neuron axis where its choice collapses.
/// Of `options`, layer (which must be a block's), pos, neurons and project_output_onto are read.
Array get_neuron_results(const VerifiedCache& cache, const NeuronOptions& options);

struct FullOptions {
  std::optional<std::int64_t> layer = {};
  bool mlp_input = false;
  bool expand_neurons = true;  // else whole MLPs
  bool apply_ln = false;
  Choice pos = {};
  Array project_output_onto = {};  // [d_model] or [d_model, output]
};
/// Heads, then neurons or MLPs, "embed", "pos_embed" and "bias" (all b_O, with neurons also b_out).
/// They sum to the residual.
Stack get_full_resid_decomposition(const VerifiedCache& cache, const FullOptions& options = {});

/// One activation over layers, as it was stored: [layer, ...]. `name` as TransformerLens shortens
/// them.
Array stack_activation(const VerifiedCache& cache, const std::string& name,
                       std::optional<std::int64_t> layer = {},
                       const std::string& sublayer_type = "");

}  // namespace lenscpp
