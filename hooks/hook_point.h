// The registry of hook points: what can be seen and edited in a transformer, under
// TransformerLens's names and shapes. One row a site; everything that must know a site reads it
// here.
//
// Glossary of axes: batch (prompts), pos (positions), head (query heads), kv_head (key-value
// heads), query and key (positions, as rows and columns of attention), d_model (residual stream),
// d_head (one head), d_mlp (neurons, of one expert where there are experts), d_vocab (tokens),
// label (of a classifier), expert, choice (the experts of a token, the likeliest first), pair
// (elements of a head turned together), apart (prompts that stand at positions of their own: one
// where all stand at the same), one (a kept dimension of extent 1).
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"

namespace lenscpp {

enum class Site : std::uint8_t {
  tokens,
  embed,
  pos_embed,
  token_type_embed,
  embed_sum,
  embed_ln_scale,
  embed_ln_normalized,
  rotary_cos,
  rotary_sin,
  windowed_cos,
  windowed_sin,
  resid_pre,
  attn_in,
  q_input,
  k_input,
  v_input,
  ln1_scale,
  ln1_normalized,
  ln1_out,
  q_scale,
  q_normalized,
  q_ln_out,
  k_scale,
  k_normalized,
  k_ln_out,
  v_scale,
  v_normalized,
  v_ln_out,
  q,
  k,
  v,
  q_norm_scale,
  q_norm_normalized,
  q_norm_out,
  k_norm_scale,
  k_norm_normalized,
  k_norm_out,
  rot_q,
  rot_k,
  keys,
  values,
  queries,
  attn_resid,
  position_bias,
  raw_scores,
  attn_scores,
  pattern,
  z,
  result,
  attn_sum,
  ln1_post_scale,
  ln1_post_normalized,
  attn_out,
  resid_mid,
  mid_ln_scale,
  mid_ln_normalized,
  mid_ln_out,
  mlp_in,
  ln2_scale,
  ln2_normalized,
  ln2_out,
  mlp_pre,
  mlp_pre_linear,
  mlp_act,
  mlp_post,
  router_logits,
  expert_weights,
  expert_indices,
  expert_shares,
  expert_gate,
  expert_pre,
  expert_act,
  expert_post,
  expert_mixed,
  mlp_sum,
  ln2_post_scale,
  ln2_post_normalized,
  mlp_out,
  resid_post,
  post_ln_scale,
  post_ln_normalized,
  normalized_resid_post,
  pooler_in,
  pooler_pre,
  pooler_out,
  class_logits,
  mlm_pre,
  mlm_post,
  ln_final_scale,
  ln_final_normalized,
  unembed_in,
  unembed_out,
  logits,
};

enum class Axis : std::uint8_t {
  batch,
  pos,
  head,
  kv_head,
  query,
  key,
  d_model,
  d_head,
  d_mlp,
  d_vocab,
  label,
  expert,
  choice,
  pair,
  apart,
  one,
  layer,
};

/// When a site exists: in every run; only where it was asked for or edited; or as a link of the
/// computation that has no name of its own in TransformerLens: checked, absent from cache.keys().
enum class Presence : std::uint8_t { always, on_demand, internal };
/// Stored as the model's dtype; as what products accumulate in (a norm's scale); or as int64.
enum class Stored : std::uint8_t { model, accumulate, ids };

/// One row of the registry. `name` is what follows "blocks.L." where `per_layer`.
struct SiteInfo {
  Site site;
  std::string_view name;
  bool per_layer;
  Presence presence;
  Stored stored;
  std::span<const Axis> axes;
};

/// All rows, in firing order.
std::span<const SiteInfo> all_sites();
const SiteInfo& info(Site site);
std::string_view name_of(Axis axis);

/// One tensor of a run: a site, its layer (0 where the site has none), and how many edits and hooks
/// have been applied to it: stage 0 is what the model computed.
struct TensorId {
  Site site;
  std::int64_t layer = 0;
  std::int64_t stage = 0;
  auto operator<=>(const TensorId&) const = default;
};

/// "blocks.3.attn.hook_q"; stages above 0 get a suffix: "blocks.3.attn.hook_q (edit 1)".
std::string hook_name(Site site, std::int64_t layer);
std::string to_string(const TensorId& id);

/// The hook point that a user's name means: a full hook name, or TransformerLens's short forms
/// ("resid_post" with a layer, "q3", "scale4ln1", "attn", "mlp_pre", "key", ...). `layer` may be
/// negative, counted from the end; `layer_type` is "attn", "mlp", "ln1", "ln2", ... or empty.
/// Throws std::out_of_range for a layer the model has not, std::invalid_argument for an unknown
/// name, naming the nearest ones.
TensorId find_hook(std::string_view name, std::optional<std::int64_t> layer,
                   std::string_view layer_type, const Config& config);
/// TransformerLens's get_act_name: the full name, without a model to check the layer against.
std::string act_name(std::string_view name, std::optional<std::int64_t> layer = {},
                     std::string_view layer_type = {});

/// Names of the hook points of a model, in firing order; on-demand ones only when `on_demand`.
std::vector<std::string> hook_names(const Config& config, bool on_demand = false);

/// Whether this model has the site at all (a folded norm has no affine output).
bool exists(Site site, const Config& config);
/// Whether the site is computed from the tokens before the first block.
constexpr bool is_embedding(Site site) { return site < Site::rotary_cos; }
/// Whether the site is a table that follows from the positions of a run alone.
constexpr bool is_table(Site site) {
  return site >= Site::rotary_cos && site <= Site::windowed_sin;
}
/// Whether the site is computed from what the last block returns.
constexpr bool is_head(Site site) { return site >= Site::pooler_in; }
/// Where the logits of a model are: behind their softcap where it has one; a classifier's, of
/// labels.
Site logits_of(const Config& config);
/// What a block returns: the next one's resid_pre.
Site block_output(const Config& config);
/// Where the keys are that scores read, as those before a run's first position are given.
Site keys_of(const Config& config);

/// Extents of a run that shapes depend on. `pos` positions are computed, `key` can be attended to;
/// `logits`: of how many tokens, all where 0; `apart`: prompts that stand at positions of their
/// own.
struct Extents {
  std::int64_t batch, pos, key, logits = 0, apart = 1;
};
Shape shape_of(Site site, const Config& config, const Extents& extents);
/// The dtype in which a site is stored in a model of dtype `model`.
DType stored_dtype(Site site, DType model);

}  // namespace lenscpp
