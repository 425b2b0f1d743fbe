// Spellings by their bytes, for models that look for tokens inside a word.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/vocabulary.h"

namespace lenscpp::tokenizing {

/// A trie in one open-addressed table.
class ByteTrie {
 public:
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};
  static constexpr std::uint32_t kRoot = 0;
  /// A later `id` of the same spelling counts.
  void insert(std::string_view spelling, TokenId id);
  /// The node that `byte` leads to, or kNone.
  std::uint32_t child(std::uint32_t node, char byte) const;
  /// The id of the token that ends at a node, or kNone.
  std::uint32_t token(std::uint32_t node) const { return tokens_[node]; }

 private:
  struct Slot {
    std::uint64_t edge = 0;
    std::uint32_t node = kNone;
  };
  void grow();
  std::size_t slot_of(std::uint64_t edge) const;
  std::vector<Slot> slots_ = std::vector<Slot>(1024);  // a power of two, at most half full
  std::vector<std::uint32_t> tokens_{kNone};
};

}  // namespace lenscpp::tokenizing
