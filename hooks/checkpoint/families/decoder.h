// What the config.json files of decoders and their tensors have in common.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hooks/checkpoint/families/family.h"
#include "hooks/checkpoint/fields.h"

namespace lenscpp {

// Beyond these a config.json is wrong; below them no product of two dimensions overflows.
inline constexpr std::int64_t kMostLayers = 10'000;
inline constexpr std::int64_t kWidest = 1 << 20;
inline constexpr std::int64_t kLargestVocabulary = 1 << 28;
inline constexpr std::int64_t kLongestContext = 1 << 28;

/// Refuses architectures other than these two, the language model and its trunk, quantized weights,
/// code of the model's own and what no decoder here has; marks fields that change no number.
void begin_decoder(Fields& fields, const nlohmann::json& document, const char* language_model,
                   const char* trunk);
/// The same without a look at the architectures; `architecture`: one to save the model as.
void begin_transformer(Fields& fields, const nlohmann::json& document, const char* architecture);
/// transformers' ACT2FN by name.
Activation read_activation(Fields& fields, Fields::Names spellings, const char* absent);
DType read_stored_dtype(Fields& fields);
/// n_heads, n_kv_heads (n_heads where null, or where absent and the family knows no other number),
/// d_model and d_head (d_model / n_heads where absent), under the names of most families.
void read_heads(Fields& fields, Config& config, std::optional<std::int64_t> absent_kv_heads = {});
/// The remaining dimensions of most families: layers, d_mlp, vocabulary and context.
void read_sizes(Fields& fields, Config& config);

/// d_model / n_heads, refused in the name of `field` where there is a remainder.
std::int64_t head_of(const Fields& fields, const Config& config, const char* field);

/// What absent fields on rotary positions mean in a family.
struct RotaryDefaults {
  double base = 10'000;
  double share = 1;  // of each head, turned
};
/// rope_parameters, or rope_theta, rope_scaling and partial_rotary_factor; and under older names.
/// Sets positions, rotary and, where scaling stretches it, n_ctx: needs d_head and n_ctx.
void read_rotary(Fields& fields, Config& config, const RotaryDefaults& absent = {});
/// Angles alone, from an object like rope_parameters.
Rope read_rope(const nlohmann::json* parameters, const std::string& origin, double base,
               std::int64_t context);
/// num_local_experts and num_experts_per_tok.
void read_experts(Fields& fields, Config& config);
/// layer_types, where there: which layers have a window.
void read_layer_types(Fields& fields, Config& config);

// ---- tensors ----

/// [in, out] of matrices [out_i, in], side by side.
Array transposed(const std::vector<Array>& matrices);
/// Rows of a matrix, or elements of a bias, in another order.
Array rows_in_order(const Array& array, const std::vector<std::int64_t>& order);
/// Elements of arrays end to end, as of biases.
Array joined(const std::vector<Array>& arrays);
Array zeros(Shape shape, DType dtype);
/// `name`.weight [out, in] as [in, out].
Array take_linear(TensorSource& tensors, const std::string& name, std::int64_t in,
                  std::int64_t out);
/// `name`.bias where `there`, else zeros.
Array take_bias(TensorSource& tensors, const std::string& name, std::int64_t size, bool there);
/// Queries, keys and values of separate matrices, and W_O with its bias.
struct AttentionNames {
  std::string q, k, v, out;
};
void take_attention(LayerWeights& layer, TensorSource& tensors, const Config& config,
                    const AttentionNames& names);
/// Queries, keys and values of one matrix whose rows stand in groups: for each key-value head the
/// queries that read it, then its keys, then its values.
void take_grouped_attention(LayerWeights& layer, TensorSource& tensors, const Config& config,
                            const std::string& qkv, const std::string& out);
/// A LayerNorm's weight and bias.
void take_layer_norm(Array& weight, Array& bias, TensorSource& tensors, const std::string& name,
                     std::int64_t size);
/// An MLP without a gate.
void take_mlp(LayerWeights& layer, TensorSource& tensors, const Config& config,
              const std::string& in, const std::string& out);
/// W_U and b_U: a matrix of its own, or W_E where config.json ties them; then a stored copy must
/// equal the embedding.
void take_unembedding(Weights& weights, TensorSource& tensors, const std::string& head,
                      const std::string& embedding);
/// W_U alone.
void take_unembedding_matrix(Weights& weights, TensorSource& tensors, const std::string& head,
                             const std::string& embedding);
/// Refuses, by name, a tensor that config.json ties to another and that is not the same, bitwise.
void require_tied(TensorSource& tensors, const std::string& name, const std::string& to,
                  const Shape& shape);

}  // namespace lenscpp
