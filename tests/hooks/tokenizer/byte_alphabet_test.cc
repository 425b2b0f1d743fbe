// The byte alphabet is one to one, and spells as GPT-2 does.
#include "hooks/tokenizer/byte_alphabet.h"

#include <gtest/gtest.h>

#include <set>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp {
namespace {

TEST(ByteAlphabet, IsOneToOne) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string& character = byte_alphabet::character(static_cast<std::uint8_t>(byte));
    seen.insert(character);
    EXPECT_EQ(byte_alphabet::byte_of(utf8::step(character, 0).code_point), byte);
  }
  EXPECT_EQ(seen.size(), 256U);
  int n_characters = 0;
  for (char32_t c = 0; c < 0x1000; ++c) n_characters += byte_alphabet::byte_of(c) ? 1 : 0;
  EXPECT_EQ(n_characters, 256);
}

TEST(ByteAlphabet, SpellsAsGpt2Does) {
  EXPECT_EQ(byte_alphabet::spell(" the"), "Ġthe");
  EXPECT_EQ(byte_alphabet::spell(std::string("\n\t\x7f\0", 4)), "ĊĉġĀ");
  EXPECT_EQ(byte_alphabet::spell("é"), "Ã©");
  EXPECT_EQ(byte_alphabet::unspell("Ġthe"), " the");
}

TEST(ByteAlphabet, WhatCannotBeSpelledStandsForItself) {
  EXPECT_EQ(byte_alphabet::unspell("a b"), "a b");  // a space is never written as itself
  EXPECT_EQ(byte_alphabet::unspell("日本"), "日本");
}

}  // namespace
}  // namespace lenscpp
