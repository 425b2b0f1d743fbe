// What a model is, as kinds and dimensions: the only thing both passes know of an architecture.
// Read from config.json by hooks/checkpoint/families/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "hooks/dtype.h"

namespace lenscpp {

/// `layer_norm_pre` is LayerNorm without weight and bias: what remains once they are folded.
enum class NormKind { layer_norm, layer_norm_pre };
/// gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ("gelu_new"); gelu_erf: x Phi(x)
/// ("gelu").
enum class Activation { gelu_tanh, gelu_erf, relu, silu };
enum class PositionKind { learned };
/// How attention and MLP stand in a block.
enum class Topology { sequential };

std::string_view name_of(NormKind kind);
std::string_view name_of(Activation kind);
std::string_view name_of(PositionKind kind);
std::string_view name_of(Topology kind);

/// Dimensions and kinds of a transformer. No dimension has a default.
struct Config {
  std::string family;  // Hugging Face's model_type
  std::int64_t n_layers, n_heads, n_kv_heads, d_model, d_head, d_mlp, d_vocab, n_ctx;
  double norm_eps;
  NormKind norm;
  Activation activation;
  PositionKind positions;
  Topology topology;
  bool scale_attn_by_sqrt_d_head = true;  // scores are divided by sqrt(d_head)
  bool scale_attn_by_inverse_layer;       // scores are divided by (layer + 1) as well
  bool tied_unembedding;                  // W_U is W_E transposed in the checkpoint
  DType stored_dtype;  // as config.json says; after load_weights: the widest in the files

  /// What attention scores are divided by in `layer`: sqrt(d_head) and layer + 1, each where asked
  /// for.
  double attn_divisor(std::int64_t layer) const;
  bool operator==(const Config&) const = default;
};

/// Reads `folder`/config.json. Throws std::invalid_argument that names the file, the field, what
/// was found and what is allowed: for an unknown model_type, a missing or misspelt dimension, and
/// every field that would change numbers and is not understood. Throws std::system_error when
/// unreadable.
Config read_config(const std::filesystem::path& folder);
/// The same from a parsed document; `origin` is named in errors.
Config parse_config(const nlohmann::json& document, const std::string& origin);

/// Every field under its own name, kinds by name.
nlohmann::json to_json(const Config& config);

}  // namespace lenscpp
