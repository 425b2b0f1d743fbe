// Byte-pair encoding of one word: bytes or characters become symbols, the pair of lowest rank
// merges first. It knows no files. Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hooks/tokenizer/vocabulary.h"
#include "hooks/tokenizer/word_encoder.h"

namespace lenscpp::tokenizing {

/// One merge: `left` and `right` become `result`. The rank is the place in the list.
struct Merge {
  TokenId left = 0;
  TokenId right = 0;
  TokenId result = 0;
};

/// An immutable table from pairs to merges, open addressing.
class MergeTable {
 public:
  struct Entry {
    std::uint32_t rank = 0;
    TokenId result = 0;
  };
  /// Throws std::invalid_argument when a pair is given twice.
  /// No merges.
  MergeTable() = default;
  MergeTable(const std::vector<Merge>& merges, std::string_view where);
  /// The merge of a pair, or nullptr.
  const Entry* find(TokenId left, TokenId right) const;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;
    Entry entry;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};  // no pair: ids are below 2^24
  std::size_t slot_of(std::uint64_t pair) const;
  std::vector<Slot> slots_ = std::vector<Slot>(16);  // a power of two, at most half full
  std::uint64_t mask_ = 15;
};

/// The token that a character is before any merge, by where it stands in its word: first, last.
class CharacterTokens {
 public:
  /// No characters.
  CharacterTokens() = default;
  /// `prefix` is on every character but the first of a word, `suffix` on the last.
  CharacterTokens(const Vocabulary& vocabulary, std::string_view prefix, std::string_view suffix);
  std::optional<TokenId> find(char32_t c, bool is_first, bool is_last) const;

 private:
  struct Table {
    std::array<std::optional<TokenId>, 128> ascii;
    std::unordered_map<char32_t, TokenId> others;
  };
  std::vector<Table> tables_;  // four, or one where there is neither prefix nor suffix
};

/// What the encoder needs of a BPE model.
struct BpeModel {
  bool raw_bytes = true;   ///< words are bytes with the tokens `byte_tokens`, else UTF-8 characters
  ByteTokens byte_tokens;  ///< of single bytes: "Ġ" and the like
  CharacterTokens characters;
  bool byte_fallback = false;      ///< a character without a token becomes its `fallback_tokens`
  ByteTokens fallback_tokens;      ///< "<0x00>" to "<0xFF>"
  std::optional<TokenId> unknown;  ///< what a character becomes that has neither
  bool fuse_unknown = false;       ///< neighbours that are unknown become one token
  MergeTable merges;
  /// With ignore_merges: whole words (as bytes where they are), tried before merging. Else empty.
  Vocabulary whole_words;
};

/// Encodes words by a BPE model; O(n log n).
class BpeEncoder : public WordEncoder {
 public:
  explicit BpeEncoder(const BpeModel& model) : model_(model) {}

 private:
  struct Symbol {
    TokenId id = 0;
    std::int32_t previous = -1;
    std::int32_t next = -1;
    bool alive = true;
  };
  struct Candidate {
    std::uint64_t rank_then_position = 0;
    TokenId result = 0;
  };
  void encode(std::string_view word, std::vector<std::int64_t>& ids) override;
  void load_bytes(std::string_view word);
  void load_characters(std::string_view word);
  bool load_fallback(std::string_view character);
  void add(TokenId id);
  void consider(std::int32_t left);
  void merge_all();
  void merge(std::int32_t left);

  const BpeModel& model_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace lenscpp::tokenizing
