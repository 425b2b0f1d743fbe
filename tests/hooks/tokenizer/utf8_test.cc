// UTF-8: what is refused, where, and how broken bytes are replaced.
#include "hooks/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace lenscpp {
namespace {

TEST(Utf8, EveryScalarValueSurvives) {
  std::string all;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string one;
    utf8::append(one, c);
    const utf8::Step step = utf8::step(one, 0);
    ASSERT_TRUE(step.valid && step.code_point == c && step.length == one.size())
        << static_cast<unsigned>(c);
    ASSERT_EQ(utf8::last("x" + one).code_point, c);
    all += one;
  }
  EXPECT_EQ(utf8::first_invalid(all), std::nullopt);
  EXPECT_EQ(utf8::replace_invalid(all), all);
}

TEST(Utf8, InvalidBytesAreFoundAtTheirOffset) {
  const std::vector<std::pair<std::string, std::size_t>> cases = {
      {"\x80", 0},                  // a continuation byte alone
      {"abc\xC0\xAF", 3},           // overlong
      {"\xE0\x80\xAF", 0},          // overlong, three bytes
      {"\xF0\x80\x80\xAF", 0},      // overlong, four bytes
      {"12345678\xED\xA0\x80", 8},  // a surrogate, after one block of ASCII
      {"\xF4\x90\x80\x80", 0},      // above U+10FFFF
      {"\xF5\x80\x80\x80", 0},      // a byte that no sequence starts with
      {"aaaaaaaaaaaaaaa\xC3", 15},  // cut off at the end
      {"\xE2\x82", 0},
      {"\xFF", 0}};
  for (const auto& [bytes, offset] : cases) EXPECT_EQ(utf8::first_invalid(bytes), offset) << offset;
}

// The replacement is that of Rust's String::from_utf8_lossy, as `tokenizers` decodes.
TEST(Utf8, EachMaximalBrokenPartBecomesOneReplacement) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(utf8::replace_invalid("a\xE2\x82z"), "a" + r + "z");
  EXPECT_EQ(utf8::replace_invalid("\xE2\x82\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(utf8::replace_invalid("\xC0\xAF"), r + r);
  EXPECT_EQ(utf8::replace_invalid("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(utf8::replace_invalid("\xF0\x9F\x98"), r);
}

TEST(Utf8, WhiteSpaceIsUnicodesTwentyFive) {
  int n = 0;
  for (char32_t c = 0; c < 0x110000; ++c) n += utf8::is_white_space(c) ? 1 : 0;
  EXPECT_EQ(n, 25);
  for (const char32_t c : {0x85, 0xA0, 0x1680, 0x200A, 0x2029, 0x3000})
    EXPECT_TRUE(utf8::is_white_space(c));
  for (const char32_t c : {0x1C, 0x180E, 0x200B, 0xFEFF}) EXPECT_FALSE(utf8::is_white_space(c));
}

}  // namespace
}  // namespace lenscpp
