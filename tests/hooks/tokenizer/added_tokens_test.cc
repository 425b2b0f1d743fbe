// Added tokens in text: leftmost, longest, flags. The golden files compare the same with
// `tokenizers`.
#include "hooks/tokenizer/added_tokens.h"

#include <gtest/gtest.h>

namespace lenscpp {
namespace {

using tokenizing::AddedToken;
using tokenizing::AddedTokenMatcher;

// Pieces as "text" or "<id>text", separated by |.
std::string cut(std::vector<AddedToken> tokens, std::string_view text) {
  std::string out;
  for (const auto& piece : AddedTokenMatcher(std::move(tokens)).split(text)) {
    out += out.empty() ? "" : "|";
    if (piece.id) out += "<" + std::to_string(*piece.id) + ">";
    out += piece.text;
  }
  return out;
}

TEST(AddedTokens, LeftmostThenLongestWins) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "ab"},
                                          {.id = 2, .content = "abc"},
                                          {.id = 3, .content = "bcd"},
                                          {.id = 4, .content = "abcdef"}};
  EXPECT_EQ(cut(tokens, "xabcdx"), "x|<2>abc|dx");
  EXPECT_EQ(cut(tokens, "abcdeab"), "<2>abc|de|<1>ab");
  EXPECT_EQ(cut(tokens, "abcdef"), "<4>abcdef");
  EXPECT_EQ(cut(tokens, ""), "");
  EXPECT_EQ(cut({}, "abc"), "abc");
}

TEST(AddedTokens, StripTakesWhiteSpaceOfEveryKind) {
  EXPECT_EQ(cut({{.id = 1, .content = "M", .lstrip = true}}, "a \n\u3000M b"),
            "a|<1> \n\u3000M| b");
  EXPECT_EQ(cut({{.id = 1, .content = "M", .rstrip = true}}, "a M \t\u00a0b"),
            "a |<1>M \t\u00a0|b");
  EXPECT_EQ(cut({{.id = 1, .content = "M", .lstrip = true, .rstrip = true}}, " M M "),
            "<1> M |<1>M ");
  EXPECT_EQ(cut({{.id = 1, .content = "M", .lstrip = true}}, "\u200bM"), "\u200b|<1>M");
}

TEST(AddedTokens, SingleWordsStandAlone) {
  const AddedToken word{.id = 1, .content = "M", .single_word = true};
  EXPECT_EQ(cut({word}, "M xM M1 M_ éM M\u0301 M.M"), "<1>M| xM M1 M_ éM M\u0301 |<1>M|.|<1>M");
  EXPECT_EQ(cut({word}, "\u200dM"), "\u200dM");  // \w of Rust's regex has Join_Control
  EXPECT_EQ(cut({word}, "²M"), "²|<1>M");
}

TEST(AddedTokens, WhiteSpaceThatWasSwallowedIsNoTokenAgain) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "M", .rstrip = true},
                                          {.id = 2, .content = "\n", .lstrip = true}};
  EXPECT_EQ(cut(tokens, "M\nx"), "<1>M\n|x");
  EXPECT_EQ(cut(tokens, "M\n\nx"), "<1>M\n\n|x");  // here `tokenizers` panics
}

}  // namespace
}  // namespace lenscpp
