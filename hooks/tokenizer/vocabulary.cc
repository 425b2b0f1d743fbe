#include "hooks/tokenizer/vocabulary.h"

#include <fmt/format.h>

#include "hooks/tokenizer/byte_alphabet.h"

namespace lenscpp::tokenizing {
namespace {

template <class Spell>
ByteTokens tokens_of(const Vocabulary& vocabulary, const Spell& spell) {
  ByteTokens tokens;
  for (std::size_t byte = 0; byte < tokens.size(); ++byte) {
    const auto found = vocabulary.find(spell(static_cast<std::uint8_t>(byte)));
    if (found != vocabulary.end()) tokens[byte] = found->second;
  }
  return tokens;
}

}  // namespace

ByteTokens alphabet_tokens_of(const Vocabulary& vocabulary) {
  return tokens_of(vocabulary, byte_alphabet::character);
}

ByteTokens fallback_tokens_of(const Vocabulary& vocabulary) {
  return tokens_of(vocabulary, [](std::uint8_t byte) { return fmt::format("<0x{:02X}>", byte); });
}

}  // namespace lenscpp::tokenizing
