// GPT-Neo as transformers' modeling_gpt_neo.py defines it: scores are not scaled.
#include "hooks/checkpoint/families/decoder.h"
#include "hooks/checkpoint/families/table.h"
#include "hooks/checkpoint/json.h"

namespace lenscpp {
namespace {

// [[["global", "local"], 6]] is those two six times over.
std::vector<std::string> repeated(const Fields& fields, const nlohmann::json& types,
                                  std::int64_t n_layers) {
  std::vector<std::string> layers;
  auto require = [&](bool holds) {
    if (!holds)
      fields.refuse("attention_types", "is " + show(types) +
                                           "; lists of kinds and how often each is repeated are "
                                           "allowed, as [[[\"global\", \"local\"], 6]]");
  };
  require(types.is_array());
  for (const nlohmann::json& group : types) {
    require(group.is_array() && group.size() == 2 && group[0].is_array() &&
            group[1].is_number_unsigned());
    auto times = group[1].get<std::uint64_t>();
    require(times <= static_cast<std::uint64_t>(n_layers));
    for (std::uint64_t i = 0; i < times; ++i)
      for (const nlohmann::json& kind : group[0]) {
        require(kind.is_string() && std::ssize(layers) < n_layers);
        layers.push_back(kind.get<std::string>());
      }
  }
  require(std::ssize(layers) == n_layers);
  return layers;
}

// attention_layers, or attention_types; of neither, every other layer is local.
void read_attention_layers(Fields& fields, Config& config, const nlohmann::json& document) {
  std::vector<std::string> layers = fields.texts({"attention_layers"});
  fields.neutral({"attention_types"});
  auto types = document.find("attention_types");
  if (layers.empty() && types != document.end() && !types->is_null())
    layers = repeated(fields, *types, config.n_layers);
  if (layers.empty())
    for (std::int64_t l = 0; l < config.n_layers; ++l)
      layers.emplace_back(l % 2 == 0 ? "global" : "local");
  for (const std::string& kind : layers) {
    if (kind != "global" && kind != "local")
      fields.refuse("attention_types", "names \"" + kind + "\"; allowed: global, local");
    config.windowed_layers.push_back(kind == "local");
  }
  if (std::ssize(config.windowed_layers) != config.n_layers)
    fields.refuse("attention_types", "names " + std::to_string(layers.size()) +
                                         " layers; there are " + std::to_string(config.n_layers));
}

}  // namespace

Config gpt_neo_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  begin_decoder(fields, document, "GPTNeoForCausalLM", "GPTNeoModel");
  Config config{};
  config.family = "gpt_neo";
  config.n_layers = fields.dimension({"num_layers", "num_hidden_layers"}, kMostLayers);
  config.n_heads = config.n_kv_heads =
      fields.dimension({"num_heads", "num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"hidden_size"}, kWidest);
  config.d_head = head_of(fields, config, "hidden_size");
  config.d_mlp =
      fields.optional_dimension({"intermediate_size"}, 4 * kWidest).value_or(4 * config.d_model);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx = fields.dimension({"max_position_embeddings"}, kLongestContext);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = read_activation(fields, {"activation_function"}, "gelu_new");
  config.positions = PositionKind::learned;
  config.topology = Topology::sequential;
  config.scale_attn_by_sqrt_d_head = false;
  config.window = fields.optional_dimension({"window_size"}, kLongestContext).value_or(256);
  read_attention_layers(fields, config, document);
  config.biases = {.qkv = false, .attn_out = true, .mlp = true};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gpt_neo_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("wte.weight") ? "" : "transformer.";
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = tensors.take(prefix + "wte.weight", {config.d_vocab, config.d_model});
  weights.W_pos = tensors.take(prefix + "wpe.weight", {config.n_ctx, config.d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string at = prefix + "h." + std::to_string(l) + ".", attn = at + "attn.attention.";
    LayerWeights layer;
    take_layer_norm(layer.ln1_w, layer.ln1_b, tensors, at + "ln_1", config.d_model);
    take_attention(layer, tensors, config,
                   {attn + "q_proj", attn + "k_proj", attn + "v_proj", attn + "out_proj"});
    take_layer_norm(layer.ln2_w, layer.ln2_b, tensors, at + "ln_2", config.d_model);
    take_mlp(layer, tensors, config, at + "mlp.c_fc", at + "mlp.c_proj");
    weights.layers.push_back(std::move(layer));
    for (const char* fixed : {"bias", "masked_bias"}) tensors.ignore(attn + fixed);
  }
  take_layer_norm(weights.ln_final_w, weights.ln_final_b, tensors, prefix + "ln_f", config.d_model);
  take_unembedding(weights, tensors, "lm_head", prefix + "wte.weight");
  return weights;
}

}  // namespace lenscpp
