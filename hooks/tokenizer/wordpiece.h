// WordPiece: the longest token that a word starts with, then the longest that goes on, and so on.
// Schuster and Nakajima 2012; as in BERT.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/byte_trie.h"
#include "hooks/tokenizer/vocabulary.h"
#include "hooks/tokenizer/word_encoder.h"

namespace lenscpp::tokenizing {

/// What the encoder needs of a WordPiece model.
struct WordPieceModel {
  /// `prefix` ("##") marks tokens that go on with a word.
  WordPieceModel(const Vocabulary& vocabulary, std::string_view prefix, TokenId unknown,
                 std::size_t max_word_characters);

  ByteTrie first;                       ///< tokens that may start a word: all, as they are spelled
  ByteTrie going_on;                    ///< those with the prefix, without it
  TokenId unknown = 0;                  ///< what a word becomes that no tokens make up
  std::size_t max_word_characters = 0;  ///< longer words are unknown
};

/// Encodes words by a WordPiece model; O(n times the longest token).
class WordPieceEncoder : public WordEncoder {
 public:
  explicit WordPieceEncoder(const WordPieceModel& model) : model_(model) {}

 private:
  void encode(std::string_view word, std::vector<std::int64_t>& ids) override;
  const WordPieceModel& model_;
};

}  // namespace lenscpp::tokenizing
