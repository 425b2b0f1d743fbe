// What the config.json files of encoders and their tensors have in common.
#pragma once

#include "hooks/checkpoint/families/decoder.h"

namespace lenscpp {

/// A class of transformers' and the head that it puts on the trunk.
struct NamedHead {
  const char* architecture;
  Head head;
};
/// begin_transformer, and the head of the one architecture that config.json names. Refuses others,
/// and decoders made of the same blocks.
Head begin_encoder(Fields& fields, const nlohmann::json& document,
                   std::initializer_list<NamedHead> allowed);
/// LayerNorms on the sums, learned positions, everything seen, biases everywhere, absolute
/// dimensions left to the family.
void read_encoder_kinds(Fields& fields, Config& config);
/// num_labels, or the number of id2label's entries, 2 where absent: of a classifier.
void read_labels(Fields& fields, Config& config);

/// A LayerNorm's weight and bias, also under their first names, gamma and beta.
void take_encoder_norm(Array& weight, Array& bias, TensorSource& tensors, const std::string& name,
                       std::int64_t size);
/// Weights with their embeddings alone: of words, positions, kinds of tokens, and the norm behind
/// them, all below `tables`.
Weights take_embeddings(const Config& config, TensorSource& tensors, const std::string& tables);
/// The dense layer of a head.
void take_head(Weights& weights, TensorSource& tensors, const std::string& name);
/// The last layer of a classifier: classifier.weight and .bias.
void take_classifier(Weights& weights, TensorSource& tensors);

}  // namespace lenscpp
