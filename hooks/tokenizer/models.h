// The section "model" of a tokenizer.json: how words become tokens.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>

#include "hooks/tokenizer/bpe.h"
#include "hooks/tokenizer/unigram.h"
#include "hooks/tokenizer/vocabulary.h"
#include "hooks/tokenizer/wordpiece.h"

namespace lenscpp::tokenizing {

using Model = std::variant<BpeModel, WordPieceModel, UnigramModel>;

/// A model and the spellings of its tokens.
struct ModelSection {
  Vocabulary vocabulary;
  Model model;
};

/// Reads a model; `where` is its place in the file. `after_byte_level`: the pre-tokenizer ends in
/// ByteLevel, so that a BPE model may take raw bytes. Throws std::invalid_argument for a kind, a
/// field or an entry that is not supported, naming it and what is allowed.
ModelSection read_model(const nlohmann::json& value, const std::string& where,
                        bool after_byte_level);
/// A non-negative id below kTokenIdLimit.
TokenId read_id(const nlohmann::json& value, const std::string& where);
/// Whether words are to be raw bytes rather than text.
bool takes_raw_bytes(const Model& model);
/// An encoder for one call; `model` must outlive it.
std::unique_ptr<WordEncoder> make_encoder(const Model& model);

}  // namespace lenscpp::tokenizing
