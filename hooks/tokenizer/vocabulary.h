// Spellings and their ids, as every model has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace lenscpp::tokenizing {

using TokenId = std::uint32_t;
/// Ids lie below this (and so do the ids of a model with 16 million tokens).
inline constexpr TokenId kTokenIdLimit = 1U << 24U;

/// Lets a std::string_view be looked up without a copy.
struct SpellingHash {
  using is_transparent = void;
  std::size_t operator()(std::string_view text) const noexcept {
    return std::hash<std::string_view>{}(text);
  }
};

/// Spelling -> id.
using Vocabulary = std::unordered_map<std::string, TokenId, SpellingHash, std::equal_to<>>;
/// The token of each byte, if any.
using ByteTokens = std::array<std::optional<TokenId>, 256>;
/// Of bytes spelled as characters, as in GPT-2: "Ġ" is 0x20.
ByteTokens alphabet_tokens_of(const Vocabulary& vocabulary);
/// Of bytes spelled "<0x00>" to "<0xFF>", as in SentencePiece.
ByteTokens fallback_tokens_of(const Vocabulary& vocabulary);

}  // namespace lenscpp::tokenizing
