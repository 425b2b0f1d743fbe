// GPT-2's bytes_to_unicode: printable Latin-1 bytes stand for themselves, the other 68 follow
// U+0100.
#include "hooks/tokenizer/byte_alphabet.h"

#include <array>
#include <cstddef>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp::byte_alphabet {
namespace {

constexpr char32_t kFirstSubstitute = 0x100;
constexpr std::size_t kSubstitutes = 68;

constexpr bool is_itself(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Tables {
  std::array<std::string, 256> characters;
  std::array<std::uint8_t, kSubstitutes> substituted{};
};

const Tables& tables() {
  static const Tables made = [] {
    Tables t;
    std::size_t n_substituted = 0;
    for (unsigned byte = 0; byte < 256; ++byte) {
      char32_t character = byte;
      if (!is_itself(byte)) {
        t.substituted[n_substituted] = static_cast<std::uint8_t>(byte);
        character = kFirstSubstitute + static_cast<char32_t>(n_substituted++);
      }
      utf8::append(t.characters[byte], character);
    }
    return t;
  }();
  return made;
}

}  // namespace

const std::string& character(std::uint8_t byte) { return tables().characters[byte]; }

std::optional<std::uint8_t> byte_of(char32_t character) {
  if (character < 0x100) {
    if (!is_itself(character)) return std::nullopt;
    return static_cast<std::uint8_t>(character);
  }
  const std::size_t index = character - kFirstSubstitute;
  if (index >= kSubstitutes) return std::nullopt;
  return tables().substituted[index];
}

std::string spell(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char byte : bytes) out += character(static_cast<std::uint8_t>(byte));
  return out;
}

std::string unspell(std::string_view spelling) {
  std::string out;
  for (std::size_t at = 0; at < spelling.size();) {
    const utf8::Step s = utf8::step(spelling, at);
    const auto byte = byte_of(s.code_point);
    if (!s.valid || !byte) return std::string(spelling);
    out.push_back(static_cast<char>(*byte));
    at += s.length;
  }
  return out;
}

}  // namespace lenscpp::byte_alphabet
