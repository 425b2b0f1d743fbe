// Unigram: of all ways to cut a word into tokens the one with the highest sum of scores (Viterbi).
// Kudo 2018, arXiv:1804.10959; as in SentencePiece.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/byte_trie.h"
#include "hooks/tokenizer/vocabulary.h"
#include "hooks/tokenizer/word_encoder.h"

namespace lenscpp::tokenizing {

/// One entry of a Unigram vocabulary; its id is its place.
struct ScoredToken {
  std::string spelling;
  double score = 0;  ///< nats
};

/// What the encoder needs of a Unigram model.
struct UnigramModel {
  UnigramModel(std::vector<ScoredToken> scored, const Vocabulary& vocabulary,
               std::optional<TokenId> unknown_token, bool has_byte_fallback);

  std::vector<ScoredToken> tokens;
  Vocabulary ids;
  ByteTrie trie;
  double unknown_score = 0;        ///< of a character that no token covers
  std::optional<TokenId> unknown;  ///< neighbours that are unknown become one token
  bool byte_fallback = false;      ///< an unknown stretch becomes its `fallback_tokens`
  ByteTokens fallback_tokens;      ///< "<0x00>" to "<0xFF>"
};

/// Encodes words by a Unigram model; O(n times the longest token).
class UnigramEncoder : public WordEncoder {
 public:
  explicit UnigramEncoder(const UnigramModel& model) : model_(model) {}

 private:
  // The best way to reach a byte of the word.
  struct Best {
    double score = 0;
    std::uint32_t token = 0;
    std::size_t begin = 0;
    bool reached = false;
  };
  void encode(std::string_view word, std::vector<std::int64_t>& ids) override;
  void find_paths(std::string_view word);
  void consider(std::size_t begin, std::size_t end, std::uint32_t token, double score);
  void append_unknown(std::string_view stretch, std::vector<std::int64_t>& ids) const;

  const UnigramModel& model_;
  std::vector<Best> best_;
  std::vector<std::size_t> ends_;
};

}  // namespace lenscpp::tokenizing
