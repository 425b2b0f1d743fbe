// BERT (arXiv 1810.04805) as transformers' modeling_bert.py defines it.
#include "hooks/checkpoint/families/encoder.h"
#include "hooks/checkpoint/families/table.h"
#include "hooks/nearest.h"

namespace lenscpp {

Config bert_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  Config config{};
  config.family = "bert";
  config.head = begin_encoder(fields, document,
                              {{"BertModel", Head::pooled},
                               {"BertForMaskedLM", Head::masked_lm},
                               {"BertForPreTraining", Head::masked_lm},
                               {"BertForSequenceClassification", Head::classifier}});
  config.n_heads = fields.dimension({"num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"hidden_size"}, kWidest);
  read_sizes(fields, config);
  config.n_token_types = fields.optional_dimension({"type_vocab_size"}, kWidest).value_or(2);
  config.norm_eps = fields.small_number({"layer_norm_eps"}, 1e-12);
  config.activation = read_activation(fields, {"hidden_act"}, "gelu");
  config.head_activation = config.head == Head::masked_lm ? config.activation : Activation::tanh;
  if (auto kind = fields.text({"position_embedding_type"}); kind && *kind != "absolute")
    fields.refuse("position_embedding_type", "is " + in_quotes(*kind) + "; allowed: \"absolute\"");
  read_encoder_kinds(fields, config);
  // Of the first multilingual files: their pooler is the same.
  fields.neutral({"directionality", "pooler_fc_size", "pooler_num_attention_heads",
                  "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"});
  fields.finish();
  return config;
}

namespace {

LayerWeights bert_layer(const Config& c, TensorSource& tensors, const std::string& at) {
  LayerWeights layer;
  const std::string attn = at + "attention.";
  take_attention(
      layer, tensors, c,
      {attn + "self.query", attn + "self.key", attn + "self.value", attn + "output.dense"});
  take_encoder_norm(layer.ln1_w, layer.ln1_b, tensors, attn + "output.LayerNorm", c.d_model);
  take_mlp(layer, tensors, c, at + "intermediate.dense", at + "output.dense");
  take_encoder_norm(layer.ln2_w, layer.ln2_b, tensors, at + "output.LayerNorm", c.d_model);
  return layer;
}

// What is added is the decoder's. transformers 5 ties `own` to it where it ties the matrices;
// before, the two were one tensor always, stored under either name.
Array take_masked_lm_bias(const Config& c, TensorSource& tensors, const std::string& own,
                          const std::string& decoder) {
  const Shape shape{c.d_vocab};
  if (!tensors.has(decoder)) return tensors.take(own, shape);
  if (c.tied_unembedding && tensors.has(own)) require_tied(tensors, decoder, own, shape);
  tensors.ignore(own);
  return tensors.take(decoder, shape);
}

void take_masked_lm(Weights& weights, TensorSource& tensors, const std::string& embedding) {
  const std::string head = "cls.predictions.";
  take_head(weights, tensors, head + "transform.dense");
  take_encoder_norm(weights.ln_final_w, weights.ln_final_b, tensors, head + "transform.LayerNorm",
                    weights.config.d_model);
  take_unembedding_matrix(weights, tensors, head + "decoder", embedding);
  weights.b_U = take_masked_lm_bias(weights.config, tensors, head + "bias", head + "decoder.bias");
  for (const char* other : {"cls.seq_relationship.weight", "cls.seq_relationship.bias"})
    tensors.ignore(other);  // whether one sentence follows another: not computed
}

}  // namespace

Weights bert_weights(const Config& config, TensorSource& tensors) {
  const std::string prefix = tensors.has("bert.embeddings.word_embeddings.weight") ? "bert." : "";
  const std::string tables = prefix + "embeddings.", pooler = prefix + "pooler.dense";
  const std::string embedding = tables + "word_embeddings.weight";
  Weights weights = take_embeddings(config, tensors, tables);
  for (std::int64_t l = 0; l < config.n_layers; ++l)
    weights.layers.push_back(
        bert_layer(config, tensors, prefix + "encoder.layer." + std::to_string(l) + "."));
  if (config.head == Head::masked_lm) {
    take_masked_lm(weights, tensors, embedding);
    for (const char* other : {".weight", ".bias"}) tensors.ignore(pooler + other);
  } else if (config.head == Head::classifier || tensors.has(pooler + ".weight")) {
    take_head(weights, tensors, pooler);
  } else {
    weights.config.head = Head::none;
  }
  if (config.head == Head::classifier) take_classifier(weights, tensors);
  return weights;
}

}  // namespace lenscpp
