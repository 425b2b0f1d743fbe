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
  }
  throw std::logic_error("[config] not a NormKind");
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
  }
  throw std::logic_error("[config] not an Activation");
}

std::string_view name_of(PositionKind kind) {
  switch (kind) {
    case PositionKind::learned:
      return "learned";
  }
  throw std::logic_error("[config] not a PositionKind");
}

std::string_view name_of(Topology kind) {
  switch (kind) {
    case Topology::sequential:
      return "sequential";
  }
  throw std::logic_error("[config] not a Topology");
}

double Config::attn_divisor(std::int64_t layer) const {
  double divisor = scale_attn_by_sqrt_d_head ? std::sqrt(static_cast<double>(d_head)) : 1;
  return scale_attn_by_inverse_layer ? divisor * static_cast<double>(layer + 1) : divisor;
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

nlohmann::json to_json(const Config& config) {
  return {{"family", config.family},
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
}

}  // namespace lenscpp
