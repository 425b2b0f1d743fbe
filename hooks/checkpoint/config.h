// What a model is, as kinds and dimensions: the only thing both passes know of an architecture.
// Read from config.json by hooks/checkpoint/families/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/dtype.h"

namespace lenscpp {

/// RMSNorm divides by the root mean square and has no bias (arXiv 1910.07467). `_pre`: without
/// weight and bias, what remains once they are folded.
enum class NormKind { layer_norm, layer_norm_pre, rms_norm, rms_norm_pre };
/// Which norms a block has: of what attention and MLP read, also of what they return, only of that;
/// or of the residual stream behind each sum, which is then itself normed (arXiv 1706.03762).
enum class NormPlacement { before, around, after, sum };
/// Whether attention and MLP read what was normed for them alone.
constexpr bool reads_normed(NormPlacement p) {
  return p == NormPlacement::before || p == NormPlacement::around;
}
/// Whether what they return is normed before it is added.
constexpr bool returns_normed(NormPlacement p) {
  return p == NormPlacement::around || p == NormPlacement::after;
}
/// RMSNorm of queries and keys before positions: none, each head by itself, or all heads as one.
enum class QkNorm { none, per_head, whole };
/// gelu_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) ("gelu_new"); gelu_erf: x Phi(x)
/// ("gelu").
enum class Activation { gelu_tanh, gelu_erf, relu, silu, tanh };
/// Rotary: queries and keys are turned by their position (arXiv 2104.09864); alibi: scores fall
/// with distance, each head by its own slope (arXiv 2108.12409).
enum class PositionKind { learned, rotary, alibi };
/// Which elements of a head are turned together: i and i + half, or 2 i and 2 i + 1.
enum class RotaryPairs { halves, adjacent };
/// How the angles are changed for contexts longer than the model was first trained on.
enum class RopeScaling { none, linear, dynamic, llama3, yarn };
/// How attention and MLP stand in a block: parallel ones read the same residual.
enum class Topology { sequential, parallel };
/// What is made of the last residual: logits of the next token; of masked tokens, behind a dense
/// layer and a norm; nothing; an activation of the first token's dense layer (BERT's pooler); of
/// that, logits of labels.
enum class Head { unembedding, masked_lm, none, pooled, classifier };
/// Whether the head ends in logits of tokens.
constexpr bool unembeds(Head head) { return head == Head::unembedding || head == Head::masked_lm; }

std::string_view name_of(NormKind kind);
std::string_view name_of(NormPlacement kind);
std::string_view name_of(QkNorm kind);
std::string_view name_of(RotaryPairs kind);
std::string_view name_of(RopeScaling kind);
std::string_view name_of(Activation kind);
std::string_view name_of(PositionKind kind);
std::string_view name_of(Topology kind);
std::string_view name_of(Head kind);

/// Angles of rotary positions: position times base^(-2 i / dimensions) for pair i, scaled as
/// transformers' modeling_rope_utils.py says. Fields that `scaling` does not need are zero.
struct Rope {
  double base;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1;                    // linear, dynamic, llama3, yarn
  std::int64_t trained_context = 0;     // dynamic, llama3, yarn
  double low_freq = 0, high_freq = 0;   // llama3
  double beta_fast = 0, beta_slow = 0;  // yarn
  bool truncates = true;                // yarn: the ramp begins and ends at whole pairs
  double attention_factor = 1;          // yarn: of cosines and sines
  bool operator==(const Rope&) const = default;
};
/// Rotary positions of a model.
struct Rotary {
  std::int64_t dimensions;  // of each head the first ones are turned, an even number
  RotaryPairs pairs;
  Rope rope;
  std::optional<Rope> windowed_rope = {};  // of layers with a window; unset: rope
  bool operator==(const Rotary&) const = default;
};

/// Experts instead of one MLP (arXiv 2101.03961): gated MLPs of d_mlp neurons each, and a router
/// that gives each token a probability of every one. The likeliest `per_token` are mixed, by their
/// probabilities over the sum of those.
struct Experts {
  std::int64_t count, per_token;
  bool operator==(const Experts&) const = default;
};

/// Which biases a checkpoint has; the others are zeros. Those of norms follow from their kind.
struct Biases {
  bool qkv = true, attn_out = true, mlp = true, unembedding = false;
  bool operator==(const Biases&) const = default;
};

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
  NormPlacement norm_placement = NormPlacement::before;
  bool norm_adds_one = false;  // norms multiply by 1 + weight
  bool embed_norm = false;     // a norm of its own behind the embedding
  QkNorm qk_norm = QkNorm::none;
  std::optional<Rotary> rotary = {};    // where positions are rotary
  bool gated_mlp = false;               // act(x W_gate + b_gate) (x W_in + b_in), then W_out
  std::optional<Experts> experts = {};  // then gated_mlp is set as well
  Biases biases = {};
  double embed_scale = 1;                     // what W_E was multiplied by at loading
  std::optional<double> scores_divisor = {};  // instead of sqrt(d_head)
  std::optional<double> scores_softcap = {};  // c tanh(s / c) of scores
  std::optional<double> logits_softcap = {};  // and of logits
  std::optional<std::int64_t> window = {};    // keys that a query sees, itself among them
  std::vector<bool> windowed_layers = {};     // which layers have it; empty: none
  bool causal = true;                         // queries see no key behind them
  std::int64_t n_token_types = 0;             // embeddings of the kinds of tokens; 0: none
  Head head = Head::unembedding;
  Activation head_activation = Activation::tanh;  // of masked_lm, pooled and classifier
  std::int64_t n_labels = 0;                      // of a classifier

  /// What attention scores are divided by in `layer`: sqrt(d_head) and layer + 1, each where asked
  /// for, or scores_divisor.
  double attn_divisor(std::int64_t layer) const;
  /// The window of one layer, where it has one.
  std::optional<std::int64_t> window_of(std::int64_t layer) const;
  /// Whether `layer` turns by windowed_rope.
  bool turns_by_windowed_rope(std::int64_t layer) const;
  /// Neurons of a layer: of all experts, where there are any. Inline: the simulated device is not
  /// linked with this library.
  std::int64_t n_neurons() const { return experts ? experts->count * d_mlp : d_mlp; }
  /// Whether norms subtract the mean.
  bool norms_centre() const;
  /// Whether norms still have their weights.
  bool norms_affine() const;
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
