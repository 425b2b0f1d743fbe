// Byte-pair encoding of one word: bytes become symbols, the pair of lowest rank merges first.
// It knows neither text nor files. Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lenscpp::tokenizing {

using TokenId = std::uint32_t;
/// Ids lie below this (and so do the ids of a model with 16 million tokens).
inline constexpr TokenId kTokenIdLimit = 1U << 24U;

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

/// What the encoder needs of a BPE model.
struct BpeModel {
  std::array<std::optional<TokenId>, 256> byte_tokens;  ///< the token of each single byte
  MergeTable merges;
  /// With ignore_merges: whole words by their raw bytes, tried before merging. Else empty.
  std::unordered_map<std::string, TokenId> whole_words;
};

/// Encodes words of one text. Holds the word cache and scratch space: one per call, never shared,
/// so that a model can be used from many threads. The model and all words must outlive it.
class BpeEncoder {
 public:
  explicit BpeEncoder(const BpeModel& model) : model_(model) {}
  /// Appends the tokens of `word` (raw bytes) to `ids`; O(n log n). Throws std::invalid_argument
  /// when a byte has no token.
  void append(std::string_view word, std::vector<std::int64_t>& ids);

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
  void encode(std::string_view word, std::vector<std::int64_t>& ids);
  void load(std::string_view word);
  void consider(std::int32_t left);
  void merge_all();
  void merge(std::int32_t left);

  struct CachedWord {
    std::size_t begin = 0;
    std::size_t size = 0;
  };
  const BpeModel& model_;
  std::unordered_map<std::string_view, CachedWord> cache_;
  std::vector<std::int64_t> cached_ids_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

}  // namespace lenscpp::tokenizing
