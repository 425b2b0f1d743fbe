// Tokens that are cut out of the text before any pre-tokenization, such as <|endoftext|>.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hooks/tokenizer/split_pattern.h"
#include "hooks/tokenizer/vocabulary.h"

namespace lenscpp::tokenizing {

/// One entry of `added_tokens`.
struct AddedToken {
  TokenId id = 0;
  std::string content;
  bool single_word = false;  ///< matches only between characters that are no part of a word
  bool lstrip = false;       ///< swallows white space before it
  bool rstrip = false;       ///< swallows white space after it
  bool normalized = false;   ///< matched in what the others left, after the normalizer
  bool special = false;      ///< left out by decode(..., skip_special)
};

/// Finds added tokens as `tokenizers` does: leftmost, then longest, never overlapping.
class AddedTokenMatcher {
 public:
  /// No content may be empty; of equal ones the first counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);
  // The trie points into `tokens_`, which a move keeps in place and a copy would not.
  AddedTokenMatcher(AddedTokenMatcher&&) = default;
  AddedTokenMatcher(const AddedTokenMatcher&) = delete;

  /// A stretch of text, or an added token found in it.
  struct Piece {
    std::string_view text;
    std::optional<TokenId> id;
  };
  /// Cuts valid UTF-8 into pieces; none is an empty stretch of text.
  std::vector<Piece> split(std::string_view text) const;

 private:
  struct Match {
    std::size_t begin = 0;
    std::size_t end = 0;
    const AddedToken* token = nullptr;
  };
  std::optional<Match> find(std::string_view text, std::size_t from) const;
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;
  bool stands_alone(std::string_view text, const Match& match) const;

  std::vector<AddedToken> tokens_;
  // A trie: (node, byte) -> node, and the token that ends at a node.
  std::unordered_map<std::uint64_t, std::uint32_t> children_;
  std::vector<const AddedToken*> ends_;
  std::array<bool, 256> starts_a_token_{};
  SplitPattern word_character_;
};

}  // namespace lenscpp::tokenizing
