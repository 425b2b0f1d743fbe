// Fields and tensors that encoders have in common.
#include "hooks/checkpoint/families/encoder.h"

#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {

Head begin_encoder(Fields& fields, const nlohmann::json& document,
                   std::initializer_list<NamedHead> allowed) {
  std::string names;
  for (const NamedHead& one : allowed)
    names += (names.empty() ? "" : ", ") + std::string(one.architecture);
  auto architectures = fields.texts({"architectures"});
  if (architectures.empty())
    fields.refuse("architectures",
                  "is missing, which is to say what head there is; allowed: one of " + names);
  if (architectures.size() != 1)
    fields.refuse("architectures", "names " + std::to_string(architectures.size()) +
                                       " classes, which are to say what head there is; allowed: "
                                       "one of " +
                                       names);
  auto found = std::ranges::find(allowed, architectures[0], &NamedHead::architecture);
  if (found == allowed.end())
    fields.refuse("architectures", "names " + in_quotes(architectures[0]) + "; allowed: " + names);
  begin_transformer(fields, document, found->architecture);
  fields.refuse_if_set("is_decoder", "encoders used as decoders are not supported; allowed: false");
  fields.neutral({"hidden_dropout_prob", "attention_probs_dropout_prob"});
  return found->head;
}

void read_encoder_kinds(Fields& fields, Config& config) {
  config.n_kv_heads = config.n_heads;
  config.d_head = head_of(fields, config, "hidden_size");
  config.norm = NormKind::layer_norm;
  config.norm_placement = NormPlacement::sum;
  config.positions = PositionKind::learned;
  config.topology = Topology::sequential;
  config.embed_norm = true;
  config.causal = false;
  config.biases.unembedding = config.head == Head::masked_lm;
  config.tied_unembedding = fields.flag({"tie_word_embeddings", "tie_weights_"}, true);
  config.stored_dtype = read_stored_dtype(fields);
  read_labels(fields, config);
}

void read_labels(Fields& fields, Config& config) {
  auto number = fields.optional_dimension({"num_labels", "_num_labels"}, kWidest);
  const nlohmann::json* names = fields.object({"id2label"});
  if (config.head != Head::classifier) return;
  config.n_labels = names != nullptr ? std::ssize(*names) : number.value_or(2);
  if (config.n_labels < 1) fields.refuse("id2label", "names no label; at least one is needed");
}

void take_encoder_norm(Array& weight, Array& bias, TensorSource& tensors, const std::string& name,
                       std::int64_t size) {
  bool first_names = tensors.has(name + ".gamma");
  weight = tensors.take(name + (first_names ? ".gamma" : ".weight"), {size});
  bias = tensors.take(name + (first_names ? ".beta" : ".bias"), {size});
}

Weights take_embeddings(const Config& config, TensorSource& tensors, const std::string& tables) {
  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  auto table = [&](const char* name, std::int64_t rows) {
    return tensors.take(tables + name, {rows, config.d_model});
  };
  weights.W_E = table("word_embeddings.weight", config.d_vocab);
  weights.W_pos = table("position_embeddings.weight", config.n_ctx);
  if (config.n_token_types > 0)
    weights.W_type = table("token_type_embeddings.weight", config.n_token_types);
  tensors.ignore(tables + "position_ids");  // 0, 1, 2, ...
  take_encoder_norm(weights.embed_ln_w, weights.embed_ln_b, tensors, tables + "LayerNorm",
                    config.d_model);
  return weights;
}

void take_head(Weights& weights, TensorSource& tensors, const std::string& name) {
  std::int64_t d = weights.config.d_model;
  weights.W_head = take_linear(tensors, name, d, d);
  weights.b_head = take_bias(tensors, name, d, true);
}

void take_classifier(Weights& weights, TensorSource& tensors) {
  const Config& c = weights.config;
  weights.W_class = take_linear(tensors, "classifier", c.d_model, c.n_labels);
  weights.b_class = take_bias(tensors, "classifier", c.n_labels, true);
}

}  // namespace lenscpp
