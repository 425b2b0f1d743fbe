// Config: names of its kinds, config.json by its model_type, and back to JSON.
#include "hooks/checkpoint/config.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "hooks/checkpoint/families/family.h"
#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {

std::string_view name_of(NormKind kind) {
  switch (kind) {
    case NormKind::layer_norm:
      return "layer_norm";
    case NormKind::layer_norm_pre:
      return "layer_norm_pre";
    case NormKind::rms_norm:
      return "rms_norm";
    case NormKind::rms_norm_pre:
      return "rms_norm_pre";
  }
  throw std::logic_error("[config] not a NormKind");
}

std::string_view name_of(NormPlacement kind) {
  switch (kind) {
    case NormPlacement::before:
      return "before";
    case NormPlacement::around:
      return "around";
    case NormPlacement::after:
      return "after";
    case NormPlacement::sum:
      return "sum";
  }
  throw std::logic_error("[config] not a NormPlacement");
}

std::string_view name_of(QkNorm kind) {
  switch (kind) {
    case QkNorm::none:
      return "none";
    case QkNorm::per_head:
      return "per_head";
    case QkNorm::whole:
      return "whole";
  }
  throw std::logic_error("[config] not a QkNorm");
}

std::string_view name_of(RotaryPairs kind) {
  switch (kind) {
    case RotaryPairs::halves:
      return "halves";
    case RotaryPairs::adjacent:
      return "adjacent";
  }
  throw std::logic_error("[config] not a RotaryPairs");
}

std::string_view name_of(RopeScaling kind) {
  switch (kind) {
    case RopeScaling::none:
      return "none";
    case RopeScaling::linear:
      return "linear";
    case RopeScaling::dynamic:
      return "dynamic";
    case RopeScaling::llama3:
      return "llama3";
    case RopeScaling::yarn:
      return "yarn";
  }
  throw std::logic_error("[config] not a RopeScaling");
}

std::string_view name_of(Activation kind) {
  switch (kind) {
    case Activation::gelu_tanh:
      return "gelu_tanh";
    case Activation::gelu_erf:
      return "gelu_erf";
    case Activation::relu:
      return "relu";
    case Activation::silu:
      return "silu";
    case Activation::tanh:
      return "tanh";
  }
  throw std::logic_error("[config] not an Activation");
}

std::string_view name_of(PositionKind kind) {
  switch (kind) {
    case PositionKind::learned:
      return "learned";
    case PositionKind::rotary:
      return "rotary";
    case PositionKind::alibi:
      return "alibi";
  }
  throw std::logic_error("[config] not a PositionKind");
}

std::string_view name_of(Topology kind) {
  switch (kind) {
    case Topology::sequential:
      return "sequential";
    case Topology::parallel:
      return "parallel";
  }
  throw std::logic_error("[config] not a Topology");
}

std::string_view name_of(Head kind) {
  switch (kind) {
    case Head::unembedding:
      return "unembedding";
    case Head::masked_lm:
      return "masked_lm";
    case Head::none:
      return "none";
    case Head::pooled:
      return "pooled";
    case Head::classifier:
      return "classifier";
  }
  throw std::logic_error("[config] not a Head");
}

double Config::attn_divisor(std::int64_t layer) const {
  double divisor = scale_attn_by_sqrt_d_head ? std::sqrt(static_cast<double>(d_head)) : 1;
  divisor = scores_divisor.value_or(divisor);
  return scale_attn_by_inverse_layer ? divisor * static_cast<double>(layer + 1) : divisor;
}

std::optional<std::int64_t> Config::window_of(std::int64_t layer) const {
  auto l = static_cast<std::size_t>(layer);
  return l < windowed_layers.size() && windowed_layers[l] ? window : std::nullopt;
}

bool Config::turns_by_windowed_rope(std::int64_t layer) const {
  return rotary && rotary->windowed_rope && window_of(layer);
}

bool Config::norms_centre() const {
  return norm == NormKind::layer_norm || norm == NormKind::layer_norm_pre;
}

bool Config::norms_affine() const {
  return norm == NormKind::layer_norm || norm == NormKind::rms_norm;
}

Config read_config(const std::filesystem::path& folder) {
  constexpr std::size_t kLargest_bytes = 16 << 20;
  std::filesystem::path path = folder / "config.json";
  return parse_config(parse_json(read_text(path, kLargest_bytes), "[config] " + path.string()),
                      path.string());
}

Config parse_config(const nlohmann::json& document, const std::string& origin) {
  auto refuse = [&](const std::string& reason) {
    throw std::invalid_argument("[config] " + origin + ": " + reason);
  };
  if (!document.is_object())
    refuse("holds a " + std::string(document.type_name()) + ", a JSON object is allowed");
  std::string allowed;
  for (const Family& known : families())
    allowed += (allowed.empty() ? "" : ", ") + in_quotes(known.model_type);
  auto model_type = document.find("model_type");
  if (model_type == document.end()) refuse("model_type is missing; allowed: " + allowed);
  if (!model_type->is_string())
    refuse("model_type is " + show(*model_type) + "; allowed: " + allowed);
  return family(model_type->get<std::string>(), origin).config(document, origin);
}

namespace {

nlohmann::json to_json(const Rope& rope) {
  return {{"base", rope.base},           {"scaling", name_of(rope.scaling)},
          {"factor", rope.factor},       {"trained_context", rope.trained_context},
          {"low_freq", rope.low_freq},   {"high_freq", rope.high_freq},
          {"beta_fast", rope.beta_fast}, {"beta_slow", rope.beta_slow},
          {"truncates", rope.truncates}, {"attention_factor", rope.attention_factor}};
}

// What only some models have: named where it is set, so that what lacks it reads as before.
void add_optional_parts(nlohmann::json& j, const Config& config) {
  const Config plain{};
  if (config.norm_placement != plain.norm_placement)
    j["norm_placement"] = name_of(config.norm_placement);
  if (config.qk_norm != plain.qk_norm) j["qk_norm"] = name_of(config.qk_norm);
  for (auto [name, value] :
       {std::pair{"norm_adds_one", config.norm_adds_one},
        std::pair{"embed_norm", config.embed_norm}, std::pair{"gated_mlp", config.gated_mlp}})
    if (value) j[name] = value;
  if (const auto& e = config.experts)
    j["experts"] = {{"count", e->count}, {"per_token", e->per_token}};
  if (const Biases& b = config.biases; b != plain.biases)
    j["biases"] = {
        {"qkv", b.qkv}, {"attn_out", b.attn_out}, {"mlp", b.mlp}, {"unembedding", b.unembedding}};
  if (config.embed_scale != 1) j["embed_scale"] = config.embed_scale;
  for (auto [name, value] : {std::pair{"scores_divisor", config.scores_divisor},
                             std::pair{"scores_softcap", config.scores_softcap},
                             std::pair{"logits_softcap", config.logits_softcap}})
    if (value) j[name] = *value;
  if (config.window) j["window"] = *config.window;
  if (!config.windowed_layers.empty()) j["windowed_layers"] = config.windowed_layers;
  if (!config.causal) j["causal"] = false;
  if (config.n_token_types > 0) j["n_token_types"] = config.n_token_types;
  if (config.head != plain.head) {
    j["head"] = name_of(config.head);
    j["head_activation"] = name_of(config.head_activation);
  }
  if (config.n_labels > 0) j["n_labels"] = config.n_labels;
  if (!config.rotary) return;
  nlohmann::json rotary = {{"dimensions", config.rotary->dimensions},
                           {"pairs", name_of(config.rotary->pairs)},
                           {"rope", to_json(config.rotary->rope)}};
  if (config.rotary->windowed_rope)
    rotary["windowed_rope"] = to_json(*config.rotary->windowed_rope);
  j["rotary"] = rotary;
}

}  // namespace

nlohmann::json to_json(const Config& config) {
  nlohmann::json j = {{"family", config.family},
                      {"n_layers", config.n_layers},
                      {"n_heads", config.n_heads},
                      {"n_kv_heads", config.n_kv_heads},
                      {"d_model", config.d_model},
                      {"d_head", config.d_head},
                      {"d_mlp", config.d_mlp},
                      {"d_vocab", config.d_vocab},
                      {"n_ctx", config.n_ctx},
                      {"norm_eps", config.norm_eps},
                      {"norm", name_of(config.norm)},
                      {"activation", name_of(config.activation)},
                      {"positions", name_of(config.positions)},
                      {"topology", name_of(config.topology)},
                      {"scale_attn_by_sqrt_d_head", config.scale_attn_by_sqrt_d_head},
                      {"scale_attn_by_inverse_layer", config.scale_attn_by_inverse_layer},
                      {"tied_unembedding", config.tied_unembedding},
                      {"stored_dtype", name_of(config.stored_dtype)}};
  add_optional_parts(j, config);
  return j;
}

}  // namespace lenscpp
