// The alphabet of byte-level BPE (GPT-2's `bytes_to_unicode`): every byte has a printable
// character, so that a vocabulary can be written as text. " the" is spelled "Ġthe".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lenscpp::byte_alphabet {

/// The UTF-8 of the character that stands for `byte`.
const std::string& character(std::uint8_t byte);
/// The byte that a character stands for, or nothing when it stands for none.
std::optional<std::uint8_t> byte_of(char32_t character);
/// Raw bytes as the vocabulary spells them.
std::string spell(std::string_view bytes);
/// The bytes that a spelling stands for; a spelling with any other character stands for itself, as
/// in the ByteLevel decoder of `tokenizers`.
std::string unspell(std::string_view spelling);

}  // namespace lenscpp::byte_alphabet
