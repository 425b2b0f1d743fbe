// DistilBERT (arXiv 1910.01108) as transformers' modeling_distilbert.py defines it.
#include "hooks/checkpoint/families/encoder.h"
#include "hooks/checkpoint/families/table.h"

namespace lenscpp {

Config distilbert_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  Config config{};
  config.family = "distilbert";
  config.head = begin_encoder(fields, document,
                              {{"DistilBertModel", Head::none},
                               {"DistilBertForMaskedLM", Head::masked_lm},
                               {"DistilBertForSequenceClassification", Head::classifier}});
  config.n_layers = fields.dimension({"n_layers", "num_hidden_layers"}, kMostLayers);
  config.n_heads = fields.dimension({"n_heads", "num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"dim", "hidden_size"}, kWidest);
  config.d_mlp = fields.dimension({"hidden_dim", "intermediate_size"}, 4 * kWidest);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx = fields.dimension({"max_position_embeddings"}, kLongestContext);
  config.norm_eps = 1e-12;
  config.activation = read_activation(fields, {"activation"}, "gelu");
  config.head_activation = config.head == Head::masked_lm ? config.activation : Activation::relu;
  read_encoder_kinds(fields, config);
  // Sinusoidal positions are stored like learned ones.
  fields.neutral({"sinusoidal_pos_embds", "seq_classif_dropout", "qa_dropout"});
  fields.finish();
  return config;
}

namespace {

LayerWeights distilbert_layer(const Config& c, TensorSource& tensors, const std::string& at) {
  LayerWeights layer;
  const std::string attn = at + "attention.";
  take_attention(layer, tensors, c,
                 {attn + "q_lin", attn + "k_lin", attn + "v_lin", attn + "out_lin"});
  take_encoder_norm(layer.ln1_w, layer.ln1_b, tensors, at + "sa_layer_norm", c.d_model);
  take_mlp(layer, tensors, c, at + "ffn.lin1", at + "ffn.lin2");
  take_encoder_norm(layer.ln2_w, layer.ln2_b, tensors, at + "output_layer_norm", c.d_model);
  return layer;
}

}  // namespace

Weights distilbert_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix =
      tensors.has("distilbert.embeddings.word_embeddings.weight") ? "distilbert." : "";
  const std::string tables = prefix + "embeddings.";
  const std::string embedding = tables + "word_embeddings.weight";
  Weights weights = take_embeddings(config, tensors, tables);
  for (std::int64_t l = 0; l < config.n_layers; ++l)
    weights.layers.push_back(
        distilbert_layer(config, tensors, prefix + "transformer.layer." + std::to_string(l) + "."));
  if (config.head == Head::masked_lm) {
    take_head(weights, tensors, "vocab_transform");
    take_encoder_norm(weights.ln_final_w, weights.ln_final_b, tensors, "vocab_layer_norm",
                      config.d_model);
    take_unembedding(weights, tensors, "vocab_projector", embedding);
  } else if (config.head == Head::classifier) {
    take_head(weights, tensors, "pre_classifier");
    take_classifier(weights, tensors);
  }
  return weights;
}

}  // namespace lenscpp
