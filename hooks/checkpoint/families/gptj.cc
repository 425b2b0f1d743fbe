// GPT-J as transformers' modeling_gptj.py defines it.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config gptj_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "GPTJForCausalLM", "GPTJModel");
  Config config{};
  config.family = "gptj";
  config.n_layers = fields.dimension({"n_layer", "num_hidden_layers"}, kMostLayers);
  config.n_heads = config.n_kv_heads = fields.dimension({"n_head", "num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"n_embd", "hidden_size"}, kWidest);
  config.d_head = head_of(fields, config, "n_embd");
  config.d_mlp = fields.optional_dimension({"n_inner"}, 4 * kWidest).value_or(4 * config.d_model);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx = fields.dimension({"n_positions", "max_position_embeddings"}, kLongestContext);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"activation_function"}, "gelu_new");
  config.topology = Topology::parallel;
  config.positions = PositionKind::rotary;
  constexpr std::int64_t kTurnedWhereAbsent = 64;
  if (document.value("rotary_dim", nlohmann::json(0)).is_null())
    fields.refuse("rotary_dim",
                  "is null: transformers would turn more than a head has; allowed: "
                  "an even number, or no such field");
  std::int64_t turned =
      fields.optional_dimension({"rotary_dim"}, kWidest).value_or(kTurnedWhereAbsent);
  if (turned > config.d_head || turned % 2 != 0)
    fields.refuse("rotary_dim", "is " + std::to_string(turned) + ", an even number up to " +
                                    std::to_string(config.d_head) + " is allowed");
  config.rotary =
      Rotary{.dimensions = turned, .pairs = RotaryPairs::adjacent, .rope = {.base = 10'000}};
  config.biases = {.qkv = false, .attn_out = false, .mlp = true, .unembedding = true};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, false);
  fields.neutral({"rotary", "scale_attn_weights"});  // of the first files; nothing reads them
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gptj_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("wte.weight") ? "" : "transformer.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "wte.weight", {config.d_vocab, config.d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "h." + std::to_string(l) + ".", attn = at + "attn.";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "ln_1", config.d_model);
    layer.ln2_w = layer.ln1_w, layer.ln2_b = layer.ln1_b;  // one norm for both
    take_attention(layer, tensors, config,
                   {attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "out_proj"});
    take_mlp(layer, tensors, config, at + "mlp.fc_in", at + "mlp.fc_out");
    weights.layers.push_back(std::move(layer));
    for (const char* fixed : {"bias", "masked_bias", "embed_positions"})
      tensors.ignore(attn + fixed);
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "ln_f", config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "wte.weight");
  return weights;
}

}  // namespace lenscpp
