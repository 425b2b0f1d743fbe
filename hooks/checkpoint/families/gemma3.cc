// Gemma 3, text only (arXiv 2503.19786), as transformers' modeling_gemma3.py defines it.
#include "hooks/checkpoint/families/gemma_parts.h"
#include "hooks/checkpoint/families/layout.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {
namespace {

// Layers with a window turn by angles of their own: rope_parameters by layer type, or rope_theta,
// rope_scaling and rope_local_base_freq.
void read_two_ropes(Fields& fields, Config& config) {
  constexpr double kBase = 1e6, kWindowedBase = 1e4;
  double base = fields.number({"rope_theta"}).value_or(kBase),
         windowed_base = fields.number({"rope_local_base_freq"}).value_or(kWindowedBase);
  const nlohmann::json *both = fields.object({"rope_parameters"}), *full = nullptr,
                       *windowed = nullptr;
  if (both != nullptr) {
    Fields by_type(*both, fields.origin() + ": rope_parameters");
    full = by_type.object({"full_attention"});
    windowed = by_type.object({"sliding_attention"});
    by_type.finish();
  } else {
    full = fields.object({"rope_scaling"});
  }
  config.positions = PositionKind::rotary;
  config.rotary =
      Rotary{.dimensions = config.d_head,
             .pairs = RotaryPairs::halves,
             .rope = read_rope(full, fields.origin(), base, config.n_ctx),
             .windowed_rope = read_rope(windowed, fields.origin(), windowed_base, config.n_ctx)};
}

}  // namespace

Config gemma3_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "Gemma3ForCausalLM", "Gemma3TextModel");
  Config config{};
  config.family = "gemma3_text";
  read_heads(fields, config, 4);
  if (!document.contains("head_dim")) config.d_head = 256;
  read_sizes(fields, config);
  read_gemma_parts(fields, config);
  read_gemma2_parts(fields, config, document, {});
  config.qk_norm = QkNorm::per_head;
  read_two_ropes(fields, config);
  fields.neutral({"hidden_act", "_sliding_window_pattern"});
  std::int64_t pattern =
      fields.optional_dimension({"sliding_window_pattern"}, kMostLayers).value_or(6);
  if (config.window)
    for (std::int64_t l = 0; l < config.n_layers; ++l)
      config.windowed_layers.push_back((l + 1) % pattern != 0);
  read_layer_types(fields, config);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gemma3_weights(const Config& config, TensorSource& tensors) {
  return weights_as_llama(config, tensors);
}

}  // namespace lenscpp
