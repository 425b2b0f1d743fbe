// The registry of hook points, their names and shapes.
#include "hooks/hook_point.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp {
namespace {

using enum Axis;

constexpr Axis kIds[] = {batch, pos};
constexpr Axis kResidual[] = {batch, pos, d_model};
constexpr Axis kScale[] = {batch, pos, one};
constexpr Axis kHeadResidual[] = {batch, pos, head, d_model};
constexpr Axis kKvResidual[] = {batch, pos, kv_head, d_model};
constexpr Axis kHeadScale[] = {batch, pos, head, one};
constexpr Axis kKvScale[] = {batch, pos, kv_head, one};
constexpr Axis kHead[] = {batch, pos, head, d_head};
constexpr Axis kKvHead[] = {batch, pos, kv_head, d_head};
constexpr Axis kAllKeys[] = {batch, key, kv_head, d_head};
constexpr Axis kScores[] = {batch, head, query, key};
constexpr Axis kMlp[] = {batch, pos, d_mlp};
constexpr Axis kExperts[] = {batch, pos, expert};
constexpr Axis kChoices[] = {batch, pos, choice};
constexpr Axis kExpertMlp[] = {batch, pos, expert, d_mlp};
constexpr Axis kLogits[] = {batch, pos, d_vocab};
constexpr Axis kTurns[] = {apart, pos, pair};
constexpr Axis kPooled[] = {batch, d_model};
constexpr Axis kLabels[] = {batch, label};
constexpr Axis kBias[] = {head, query, key};

constexpr auto kAlways = Presence::always;
constexpr auto kDemand = Presence::on_demand;
constexpr auto kInternal = Presence::internal;
constexpr auto kModel = Stored::model;
constexpr auto kWide = Stored::accumulate;

constexpr SiteInfo kSites[] = {
    {Site::tokens, "hook_tokens", false, kDemand, Stored::ids, kIds},
    {Site::embed, "hook_embed", false, kAlways, kModel, kResidual},
    {Site::pos_embed, "hook_pos_embed", false, kAlways, kModel, kResidual},
    {Site::token_type_embed, "hook_token_type_embed", false, kAlways, kModel, kResidual},
    {Site::embed_sum, "embed.sum", false, kInternal, kModel, kResidual},
    {Site::embed_ln_scale, "embed.ln.hook_scale", false, kAlways, kWide, kScale},
    {Site::embed_ln_normalized, "embed.ln.hook_normalized", false, kAlways, kModel, kResidual},
    {Site::rotary_cos, "rotary.cos", false, kInternal, kWide, kTurns},
    {Site::rotary_sin, "rotary.sin", false, kInternal, kWide, kTurns},
    {Site::windowed_cos, "rotary.windowed_cos", false, kInternal, kWide, kTurns},
    {Site::windowed_sin, "rotary.windowed_sin", false, kInternal, kWide, kTurns},
    {Site::resid_pre, "hook_resid_pre", true, kAlways, kModel, kResidual},
    {Site::attn_in, "hook_attn_in", true, kDemand, kModel, kHeadResidual},
    {Site::q_input, "hook_q_input", true, kDemand, kModel, kHeadResidual},
    {Site::k_input, "hook_k_input", true, kDemand, kModel, kKvResidual},
    {Site::v_input, "hook_v_input", true, kDemand, kModel, kKvResidual},
    {Site::ln1_scale, "ln1.hook_scale", true, kAlways, kWide, kScale},
    {Site::ln1_normalized, "ln1.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::ln1_out, "ln1.out", true, kInternal, kModel, kResidual},
    {Site::q_scale, "q_input.scale", true, kInternal, kWide, kHeadScale},
    {Site::q_normalized, "q_input.normalized", true, kInternal, kModel, kHeadResidual},
    {Site::q_ln_out, "q_input.out", true, kInternal, kModel, kHeadResidual},
    {Site::k_scale, "k_input.scale", true, kInternal, kWide, kKvScale},
    {Site::k_normalized, "k_input.normalized", true, kInternal, kModel, kKvResidual},
    {Site::k_ln_out, "k_input.out", true, kInternal, kModel, kKvResidual},
    {Site::v_scale, "v_input.scale", true, kInternal, kWide, kKvScale},
    {Site::v_normalized, "v_input.normalized", true, kInternal, kModel, kKvResidual},
    {Site::v_ln_out, "v_input.out", true, kInternal, kModel, kKvResidual},
    {Site::q, "attn.hook_q", true, kAlways, kModel, kHead},
    {Site::k, "attn.hook_k", true, kAlways, kModel, kKvHead},
    {Site::v, "attn.hook_v", true, kAlways, kModel, kKvHead},
    {Site::q_norm_scale, "attn.q_norm.hook_scale", true, kAlways, kWide, kHeadScale},
    {Site::q_norm_normalized, "attn.q_norm.hook_normalized", true, kAlways, kModel, kHead},
    {Site::q_norm_out, "attn.q_norm.out", true, kInternal, kModel, kHead},
    {Site::k_norm_scale, "attn.k_norm.hook_scale", true, kAlways, kWide, kKvScale},
    {Site::k_norm_normalized, "attn.k_norm.hook_normalized", true, kAlways, kModel, kKvHead},
    {Site::k_norm_out, "attn.k_norm.out", true, kInternal, kModel, kKvHead},
    {Site::rot_q, "attn.hook_rot_q", true, kAlways, kModel, kHead},
    {Site::rot_k, "attn.hook_rot_k", true, kAlways, kModel, kKvHead},
    {Site::keys, "attn.keys", true, kInternal, kModel, kAllKeys},
    {Site::values, "attn.values", true, kInternal, kModel, kAllKeys},
    {Site::queries, "attn.queries", true, kInternal, kModel, kHead},
    {Site::attn_resid, "attn.resid", true, kInternal, kModel, kResidual},
    {Site::position_bias, "attn.position_bias", true, kInternal, kModel, kBias},
    {Site::raw_scores, "attn.raw_scores", true, kInternal, kModel, kScores},
    {Site::attn_scores, "attn.hook_attn_scores", true, kAlways, kModel, kScores},
    {Site::pattern, "attn.hook_pattern", true, kAlways, kModel, kScores},
    {Site::z, "attn.hook_z", true, kAlways, kModel, kHead},
    {Site::result, "attn.hook_result", true, kDemand, kModel, kHeadResidual},
    {Site::attn_sum, "attn.sum", true, kInternal, kModel, kResidual},
    {Site::ln1_post_scale, "ln1_post.hook_scale", true, kAlways, kWide, kScale},
    {Site::ln1_post_normalized, "ln1_post.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::attn_out, "hook_attn_out", true, kAlways, kModel, kResidual},
    {Site::resid_mid, "hook_resid_mid", true, kAlways, kModel, kResidual},
    {Site::mid_ln_scale, "ln1.hook_scale", true, kAlways, kWide, kScale},
    {Site::mid_ln_normalized, "ln1.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::mid_ln_out, "ln1.out", true, kInternal, kModel, kResidual},
    {Site::mlp_in, "hook_mlp_in", true, kDemand, kModel, kResidual},
    {Site::ln2_scale, "ln2.hook_scale", true, kAlways, kWide, kScale},
    {Site::ln2_normalized, "ln2.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::ln2_out, "ln2.out", true, kInternal, kModel, kResidual},
    {Site::mlp_pre, "mlp.hook_pre", true, kAlways, kModel, kMlp},
    {Site::mlp_pre_linear, "mlp.hook_pre_linear", true, kAlways, kModel, kMlp},
    {Site::mlp_act, "mlp.act", true, kInternal, kModel, kMlp},
    {Site::mlp_post, "mlp.hook_post", true, kAlways, kModel, kMlp},
    // transformer-lens has gate, pre and post as mlp.experts.N.hook_gate, hook_pre and hook_post,
    // of the tokens that chose expert N.
    {Site::router_logits, "mlp.router_logits", true, kInternal, kModel, kExperts},
    {Site::expert_weights, "mlp.hook_expert_weights", true, kAlways, kWide, kExperts},
    {Site::expert_indices, "mlp.hook_expert_indices", true, kAlways, Stored::ids, kChoices},
    {Site::expert_shares, "mlp.expert_shares", true, kInternal, kModel, kExperts},
    {Site::expert_gate, "mlp.hook_expert_gate", true, kAlways, kModel, kExpertMlp},
    {Site::expert_pre, "mlp.hook_expert_pre", true, kAlways, kModel, kExpertMlp},
    {Site::expert_act, "mlp.expert_act", true, kInternal, kModel, kExpertMlp},
    {Site::expert_post, "mlp.hook_expert_post", true, kAlways, kModel, kExpertMlp},
    {Site::expert_mixed, "mlp.expert_mixed", true, kInternal, kModel, kExpertMlp},
    {Site::mlp_sum, "mlp.sum", true, kInternal, kModel, kResidual},
    {Site::ln2_post_scale, "ln2_post.hook_scale", true, kAlways, kWide, kScale},
    {Site::ln2_post_normalized, "ln2_post.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::mlp_out, "hook_mlp_out", true, kAlways, kModel, kResidual},
    {Site::resid_post, "hook_resid_post", true, kAlways, kModel, kResidual},
    {Site::post_ln_scale, "ln2.hook_scale", true, kAlways, kWide, kScale},
    {Site::post_ln_normalized, "ln2.hook_normalized", true, kAlways, kModel, kResidual},
    {Site::normalized_resid_post, "hook_normalized_resid_post", true, kAlways, kModel, kResidual},
    {Site::pooler_in, "pooler.in", false, kInternal, kModel, kPooled},
    {Site::pooler_pre, "pooler.pre", false, kInternal, kModel, kPooled},
    {Site::pooler_out, "pooler.hook_pooler_out", false, kAlways, kModel, kPooled},
    {Site::class_logits, "classifier.hook_out", false, kAlways, kModel, kLabels},
    {Site::mlm_pre, "mlm_head.hook_pre", false, kAlways, kModel, kResidual},
    {Site::mlm_post, "mlm_head.hook_post", false, kAlways, kModel, kResidual},
    {Site::ln_final_scale, "ln_final.hook_scale", false, kAlways, kWide, kScale},
    {Site::ln_final_normalized, "ln_final.hook_normalized", false, kAlways, kModel, kResidual},
    {Site::unembed_in, "unembed.hook_in", false, kAlways, kModel, kResidual},
    {Site::unembed_out, "unembed.hook_out", false, kAlways, kModel, kLogits},
    {Site::logits, "unembed.logits", false, kInternal, kModel, kLogits},
};

constexpr bool rows_follow_the_enum() {
  for (std::size_t i = 0; i < std::size(kSites); ++i)
    if (static_cast<std::size_t>(kSites[i].site) != i) return false;
  return true;
}
static_assert(rows_follow_the_enum(),
              "kSites stands in the order of Site, so that info() can index it");

// TransformerLens's get_act_name: what a short name and a layer type stand for.
struct Alias {
  std::string_view from, to;
};
constexpr Alias kNameAliases[] = {{"attn", "pattern"}, {"attn_logits", "attn_scores"},
                                  {"key", "k"},        {"query", "q"},
                                  {"value", "v"},      {"mlp_pre", "pre"},
                                  {"mlp_mid", "mid"},  {"mlp_post", "post"}};
constexpr Alias kTypeAliases[] = {{"a", "attn"}, {"m", "mlp"},   {"b", ""},
                                  {"block", ""}, {"blocks", ""}, {"attention", "attn"}};
constexpr std::string_view kAttnActs[] = {"k",     "v",      "q",       "z",          "rot_k",
                                          "rot_q", "result", "pattern", "attn_scores"};
constexpr std::string_view kMlpActs[] = {"pre",         "post",           "mid",
                                         "pre_linear",  "expert_weights", "expert_indices",
                                         "expert_gate", "expert_pre",     "expert_post"};

template <std::size_t N>
std::string_view alias(const Alias (&table)[N], std::string_view name) {
  for (const Alias& a : table)
    if (a.from == name) return a.to;
  return name;
}

std::optional<std::int64_t> to_int(std::string_view digits) {
  std::int64_t value = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size()) return {};
  return value;
}

struct ShortName {
  std::string name;
  std::optional<std::int64_t> layer;
  std::string layer_type;
};

// "k6" and "scale4ln1": letters, digits, then an optional layer type.
ShortName split_short(std::string_view text) {
  auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  auto begin = std::find_if(text.begin(), text.end(), is_digit);
  auto end = std::find_if_not(begin, text.end(), is_digit);
  if (begin == text.begin() || begin == text.end()) return {std::string(text), {}, {}};
  return {std::string(text.begin(), begin), to_int({begin, end}), std::string(end, text.end())};
}

std::vector<std::string> suggestions(const Config& config) { return hook_names(config, true); }

}  // namespace

std::span<const SiteInfo> all_sites() { return kSites; }
const SiteInfo& info(Site site) { return kSites[static_cast<std::size_t>(site)]; }

std::string_view name_of(Axis axis) {
  switch (axis) {
    case batch:
      return "batch";
    case pos:
      return "pos";
    case head:
      return "head";
    case kv_head:
      return "kv_head";
    case query:
      return "query";
    case key:
      return "key";
    case d_model:
      return "d_model";
    case d_head:
      return "d_head";
    case d_mlp:
      return "d_mlp";
    case d_vocab:
      return "d_vocab";
    case label:
      return "label";
    case expert:
      return "expert";
    case choice:
      return "choice";
    case pair:
      return "pair";
    case apart:
      return "apart";
    case one:
      return "1";
    case layer:
      return "layer";
  }
  throw std::logic_error("[hook_point] not an Axis");
}

std::string hook_name(Site site, std::int64_t layer) {
  const SiteInfo& row = info(site);
  return row.per_layer ? "blocks." + std::to_string(layer) + "." + std::string(row.name)
                       : std::string(row.name);
}

std::string to_string(const TensorId& id) {
  std::string name = hook_name(id.site, id.layer);
  return id.stage == 0 ? name : name + " (edit " + std::to_string(id.stage) + ")";
}

std::string act_name(std::string_view name, std::optional<std::int64_t> layer,
                     std::string_view layer_type) {
  if (name.find('.') != std::string_view::npos || name.starts_with("hook_"))
    return std::string(name);
  ShortName parsed = split_short(name);
  // "ln_final" carries no digits; "ln1" and "ln2" as a name would: they are layer types only.
  if (!parsed.layer) parsed.name = name;
  if (!layer) layer = parsed.layer;
  if (layer_type.empty()) layer_type = parsed.layer_type;
  std::string_view type = alias(kTypeAliases, layer_type);
  std::string_view act = alias(kNameAliases, parsed.name);
  if (std::ranges::find(kAttnActs, act) != std::end(kAttnActs)) type = "attn";
  if (std::ranges::find(kMlpActs, act) != std::end(kMlpActs)) type = "mlp";
  std::string prefix = layer ? "blocks." + std::to_string(*layer) + "." : "";
  if (!type.empty()) prefix += std::string(type) + ".";
  // Without a layer, a norm's parts mean the final norm's.
  if ((act == "scale" || act == "normalized") && !layer) prefix = "ln_final.";
  return prefix + "hook_" + std::string(act);
}

TensorId find_hook(std::string_view name, std::optional<std::int64_t> layer,
                   std::string_view layer_type, const Config& config) {
  if (layer && *layer < 0) layer = *layer + config.n_layers;
  std::string full = act_name(name, layer, layer_type);
  std::string_view suffix = full;
  std::optional<std::int64_t> found_layer;
  if (suffix.starts_with("blocks.")) {
    std::size_t dot = suffix.find('.', 7);
    if (dot != std::string_view::npos) {
      std::string_view digits = suffix.substr(7, dot - 7);
      found_layer = to_int(digits);
      if (found_layer && (*found_layer < 0 || *found_layer >= config.n_layers))
        throw std::out_of_range("[hooks] \"" + full + "\": layer " + std::string(digits) +
                                " out of range: the model has " + std::to_string(config.n_layers) +
                                " layers (0.." + std::to_string(config.n_layers - 1) + ")");
      suffix.remove_prefix(dot + 1);
    }
  }
  for (const SiteInfo& row : kSites)
    if (row.name == suffix && row.per_layer == found_layer.has_value() &&
        row.presence != Presence::internal && exists(row.site, config))
      return {row.site, found_layer.value_or(0)};
  bool elsewhere = std::ranges::any_of(kSites, [&](const SiteInfo& row) {
    return row.name == suffix && row.presence != Presence::internal;
  });
  throw std::invalid_argument("[hooks] no hook point \"" + full + "\"" +
                              (elsewhere ? " in a model of these kinds" : "") +
                              "; nearest: " + nearest_names(full, suggestions(config)));
}

bool exists(Site site, const Config& c) {
  bool before = reads_normed(c.norm_placement), behind = returns_normed(c.norm_placement);
  bool summed = c.norm_placement == NormPlacement::sum;
  bool turned = c.positions == PositionKind::rotary;
  // Not Config::norms_affine, which the simulated device is not linked with.
  bool affine = c.norm == NormKind::layer_norm || c.norm == NormKind::rms_norm;
  switch (site) {
    case Site::pos_embed:
      return c.positions == PositionKind::learned;
    case Site::token_type_embed:
      return c.n_token_types > 0;
    case Site::embed_sum:
      return c.embed_norm && c.positions == PositionKind::learned;
    case Site::embed_ln_scale:
    case Site::embed_ln_normalized:
      return c.embed_norm;
    case Site::rotary_cos:
    case Site::rotary_sin:
    case Site::rot_q:
    case Site::rot_k:
      return turned;
    case Site::windowed_cos:
    case Site::windowed_sin:
      return turned && c.rotary->windowed_rope;
    case Site::position_bias:
      return c.positions == PositionKind::alibi;
    case Site::ln1_scale:
    case Site::ln1_normalized:
    case Site::ln2_scale:
    case Site::ln2_normalized:
    case Site::q_scale:
    case Site::q_normalized:
    case Site::k_scale:
    case Site::k_normalized:
    case Site::v_scale:
    case Site::v_normalized:
      return before;
    case Site::ln1_out:
    case Site::ln2_out:
    case Site::q_ln_out:
    case Site::k_ln_out:
    case Site::v_ln_out:
      return before && affine;
    case Site::q_norm_scale:
    case Site::q_norm_normalized:
    case Site::q_norm_out:
    case Site::k_norm_scale:
    case Site::k_norm_normalized:
    case Site::k_norm_out:
      return c.qk_norm != QkNorm::none;
    case Site::raw_scores:
      return c.scores_softcap || c.positions == PositionKind::alibi;
    case Site::attn_sum:
    case Site::ln1_post_scale:
    case Site::ln1_post_normalized:
    case Site::mlp_sum:
    case Site::ln2_post_scale:
    case Site::ln2_post_normalized:
      return behind;
    case Site::resid_mid:
      return c.topology == Topology::sequential;
    case Site::mid_ln_scale:
    case Site::mid_ln_normalized:
    case Site::mid_ln_out:
    case Site::post_ln_scale:
    case Site::post_ln_normalized:
    case Site::normalized_resid_post:
      return summed;
    case Site::mlp_in:  // TransformerLens's is read by the residual as well where sums are normed
      return !summed;
    case Site::pooler_in:
    case Site::pooler_pre:
    case Site::pooler_out:
      return c.head == Head::pooled || c.head == Head::classifier;
    case Site::class_logits:
      return c.head == Head::classifier;
    case Site::mlm_pre:
    case Site::mlm_post:
      return c.head == Head::masked_lm;
    case Site::ln_final_scale:
    case Site::ln_final_normalized:
    case Site::unembed_in:
    case Site::unembed_out:
      return unembeds(c.head);
    case Site::mlp_pre:
    case Site::mlp_post:
      return !c.experts;
    case Site::mlp_pre_linear:
    case Site::mlp_act:
      return c.gated_mlp && !c.experts;
    case Site::router_logits:
    case Site::expert_weights:
    case Site::expert_indices:
    case Site::expert_shares:
    case Site::expert_gate:
    case Site::expert_pre:
    case Site::expert_act:
    case Site::expert_post:
    case Site::expert_mixed:
      return c.experts.has_value();
    case Site::logits:
      return c.logits_softcap.has_value();
    default:
      return true;
  }
}

Site logits_of(const Config& config) {
  if (config.head == Head::classifier) return Site::class_logits;
  return exists(Site::logits, config) ? Site::logits : Site::unembed_out;
}

Site block_output(const Config& config) {
  return exists(Site::normalized_resid_post, config) ? Site::normalized_resid_post
                                                     : Site::resid_post;
}

Site keys_of(const Config& config) { return exists(Site::rot_k, config) ? Site::rot_k : Site::k; }

std::vector<std::string> hook_names(const Config& config, bool on_demand) {
  std::vector<std::string> names;
  auto add = [&](const SiteInfo& row, std::int64_t layer) {
    if (row.presence == Presence::internal || !exists(row.site, config)) return;
    if (row.presence == Presence::on_demand && !on_demand) return;
    names.push_back(hook_name(row.site, layer));
  };
  auto first = std::ranges::find_if(kSites, &SiteInfo::per_layer);
  auto last =
      std::find_if_not(first, std::end(kSites), [](const SiteInfo& r) { return r.per_layer; });
  std::for_each(std::begin(kSites), first, [&](const SiteInfo& row) { add(row, 0); });
  for (std::int64_t l = 0; l < config.n_layers; ++l)
    std::for_each(first, last, [&](const SiteInfo& row) { add(row, l); });
  std::for_each(last, std::end(kSites), [&](const SiteInfo& row) { add(row, 0); });
  return names;
}

Shape shape_of(Site site, const Config& config, const Extents& extents) {
  Shape shape;
  // One scale for all heads together.
  bool whole =
      config.qk_norm == QkNorm::whole && (site == Site::q_norm_scale || site == Site::k_norm_scale);
  for (Axis axis : info(site).axes) {
    switch (axis) {
      case batch:
        shape.push_back(extents.batch);
        break;
      case pos:
      case query:
        shape.push_back(extents.pos);
        break;
      case key:
        shape.push_back(extents.key);
        break;
      case head:
        shape.push_back(whole ? 1 : config.n_heads);
        break;
      case kv_head:
        shape.push_back(whole ? 1 : config.n_kv_heads);
        break;
      case d_model:
        shape.push_back(config.d_model);
        break;
      case d_head:
        shape.push_back(config.d_head);
        break;
      case d_mlp:
        shape.push_back(config.d_mlp);
        break;
      case d_vocab:
        shape.push_back(extents.logits > 0 ? extents.logits : config.d_vocab);
        break;
      case label:
        shape.push_back(config.n_labels);
        break;
      case expert:
        shape.push_back(config.experts ? config.experts->count : 0);
        break;
      case choice:
        shape.push_back(config.experts ? config.experts->per_token : 0);
        break;
      case pair:
        shape.push_back(config.rotary ? config.rotary->dimensions / 2 : 0);
        break;
      case apart:
        shape.push_back(extents.apart);
        break;
      case one:
        shape.push_back(1);
        break;
      case layer:
        throw std::logic_error("[hook_point] no site has a layer axis of its own");
    }
  }
  return shape;
}

DType stored_dtype(Site site, DType model) {
  switch (info(site).stored) {
    case Stored::model:
      return model;
    case Stored::accumulate:
      return accumulate_type(model);
    case Stored::ids:
      return DType::i64;
  }
  throw std::logic_error("[hook_point] not a Stored");
}

}  // namespace lenscpp
