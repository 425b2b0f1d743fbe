// A model's master weights on the host: what both passes read, never read back from a device.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"

namespace lenscpp {

/// A matrix [in, out] as it lies in an Array: `out` outputs from `first_output` on of a row-major
/// [in, outputs] array, or, when `outputs_are_rows`, so many rows of an [outputs, in] array.
struct Matrix {
  Array storage;
  std::int64_t in, out;
  std::int64_t first_output = 0;
  bool outputs_are_rows = false;
};
/// `out` elements of a bias from `first` on.
struct Vector {
  Array storage;
  std::int64_t size;
  std::int64_t first = 0;
};

/// Weights of one block. Empty arrays: a norm's weight and bias once folded, the bias of an
/// RMSNorm. Biases that a checkpoint lacks are zeros.
struct LayerWeights {
  Array ln1_w, ln1_b;        // [d_model], before attention, or behind the sum with what it returns
  Array q_norm_w, k_norm_w;  // [d_head], or of all heads together; empty without such norms
  Array ln1_post_w;          // [d_model], of what attention returns; empty without
  Array W_QKV;  // [d_model, (n_heads + 2 n_kv_heads) d_head]: queries, keys, values, head-major
  Array b_QKV;  // [(n_heads + 2 n_kv_heads) d_head]
  Array W_O;    // [n_heads d_head, d_model]
  Array b_O;    // [d_model]
  Array ln2_w, ln2_b;        // [d_model]
  Array W_router, b_router;  // [d_model, expert], [expert]; empty without experts
  // Of experts: those of all neurons, expert after expert.
  Array W_gate, b_gate;  // [d_model, d_mlp], [d_mlp]; empty unless gated
  Array W_in;            // [d_model, d_mlp]
  Array b_in;            // [d_mlp]
  Array W_out;           // [d_mlp, d_model]
  Array b_out;           // [d_model]
  Array ln2_post_w;      // [d_model], of what the MLP returns; empty without
};

/// All weights of a model, all of one dtype.
struct Weights {
  Config config;
  DType dtype;
  Array W_E;                     // [d_vocab, d_model]
  Array W_pos;                   // [n_ctx, d_model]; empty unless positions are learned
  Array W_type;                  // [n_token_types, d_model]; empty without kinds of tokens
  Array embed_ln_w, embed_ln_b;  // [d_model]; empty without a norm behind the embedding
  std::vector<LayerWeights> layers;
  Array W_head, b_head;          // [d_model, d_model], [d_model]: a head's dense layer; or empty
  Array W_class, b_class;        // [d_model, n_labels], [n_labels]; empty unless a classifier
  Array ln_final_w, ln_final_b;  // [d_model]; empty once folded, and without logits of tokens
  Array W_U;  // [d_vocab, d_model]: one row a token, the same buffer as W_E when tied and raw
  Array b_U;  // [d_vocab]; both empty without logits of tokens

  /// Views into the arrays above. Throw std::out_of_range for a layer that is not there.
  Matrix W_Q(std::int64_t layer) const;
  Matrix W_K(std::int64_t layer) const;
  Matrix W_V(std::int64_t layer) const;
  Vector b_Q(std::int64_t layer) const;
  Vector b_K(std::int64_t layer) const;
  Vector b_V(std::int64_t layer) const;
  Matrix W_O(std::int64_t layer) const;
  Matrix W_router(std::int64_t layer) const;
  Matrix W_gate(std::int64_t layer) const;
  Matrix W_in(std::int64_t layer) const;
  Matrix W_out(std::int64_t layer) const;
  Matrix unembedding() const;

  /// Calls `visit(name, array)` for every array under a stable name: "embed.W_E",
  /// "pos_embed.W_pos", "blocks.0.ln1.w", "blocks.0.attn.W_QKV", "blocks.0.mlp.b_out",
  /// "ln_final.w", "unembed.W_U". Folded norms are skipped.
  void for_each(const std::function<void(const std::string&, const Array&)>& visit) const;
  /// Bytes of all arrays; a buffer that several share counts once.
  std::size_t nbytes() const;
  /// XXH3-128 over config, names and digests of all arrays.
  std::string digest() const;
};

/// Loads a Hugging Face folder (model.safetensors, or model.safetensors.index.json with its
/// shards), memory-mapped; arrays that need no change of layout or dtype point into the file.
/// Throws std::invalid_argument naming file and tensor: missing, extra, misshapen, of unknown
/// dtype, a NaN or an infinity, too large for `dtype`; std::system_error when a file cannot be
/// read.
Weights load_weights(const std::filesystem::path& folder, DType dtype);

/// The weights that a config makes, by shape and dtype alone: no element may be read, none takes
/// memory. For what must know sizes before anything is loaded. Norms are there unless folded
/// (config.norm).
Weights outline(const Config& config, DType dtype);

/// The same weights rounded to `dtype`; what shared a buffer goes on sharing. Throws
/// std::invalid_argument naming the array that overflows `dtype`.
Weights cast(const Weights& weights, DType dtype);

}  // namespace lenscpp
