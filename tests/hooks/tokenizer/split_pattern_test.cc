// Split patterns: classes code point by code point, behaviors, and what the dialect leaves out.
#include "hooks/tokenizer/split_pattern.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "hooks/tokenizer/utf8.h"
#include "tests/hooks/tokenizer/expect_refusal.h"

namespace lenscpp {
namespace {

using testing::expect_refusal;
using tokenizing::SplitBehavior;
using tokenizing::SplitPattern;
using tokenizing::translate_pattern;

std::vector<bool> members(const SplitPattern& pattern) {
  std::vector<bool> found(0x110000, false);
  std::string text;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    text.clear();
    utf8::append(text, c);
    found[c] = pattern.spans(text).front().is_match;
  }
  return found;
}

// Ranges of code points as `tokenizers` has them (tests/golden/make_unicode_extras.py).
TEST(SplitPattern, ClassesAreThoseOfTokenizersForEveryCodePoint) {
  std::ifstream stream(LENSCPP_SOURCE_DIR "/tests/golden/unicode_classes.json");
  const auto golden = nlohmann::json::parse(stream);
  int n_classes = 0;
  for (const auto& [name, ranges] : golden["classes"].items()) {
    const SplitPattern pattern = name == "Word"     ? SplitPattern::one_word_character()
                                 : name == "Digits" ? SplitPattern::one_digit()
                                 : name == "space"
                                     ? SplitPattern::from_regex("\\s", name)
                                     : SplitPattern::from_regex("\\p{" + name + "}", name);
    std::vector<bool> expected(0x110000, false);
    for (const auto& range : ranges) {
      for (char32_t c = range[0]; c <= range[1].get<char32_t>(); ++c) expected[c] = true;
    }
    const std::vector<bool> found = members(pattern);
    std::size_t n_wrong = 0;
    std::size_t first = 0;
    for (std::size_t c = 0; c < found.size(); ++c) {
      if (found[c] == expected[c]) continue;
      if (n_wrong++ == 0) first = c;
    }
    EXPECT_EQ(n_wrong, 0U) << name << ": first at U+" << std::hex << first;
    ++n_classes;
  }
  EXPECT_EQ(n_classes, 14);
}

std::string joined(const std::vector<std::string_view>& parts) {
  std::string out;
  for (const std::string_view part : parts) out += (out.empty() ? "" : "|") + std::string(part);
  return out;
}

TEST(SplitPattern, Gpt2PatternKeepsLettersDigitsAndRunsOfSpace) {
  const auto gpt2 = SplitPattern::from_regex(tokenizing::kGpt2Pattern, "gpt2");
  const auto split = [&](std::string_view text) {
    return joined(gpt2.split(text, SplitBehavior::isolated, false));
  };
  EXPECT_EQ(split("I'll say it's 2024, don'T"), "I|'ll| say| it|'s| 2024|,| don|'|T");
  EXPECT_EQ(split("a  b \n c   "), "a| | b| \n| c|   ");
  EXPECT_EQ(split("x²½ 日本"), "x|²½| 日本");
  EXPECT_EQ(split("\u180ea\u0085b"), "\u180e|a|\u0085|b");
  EXPECT_EQ(split(""), "");
}

// The example of `tokenizers`' SplitDelimiterBehavior.
TEST(SplitPattern, BehaviorsAreThoseOfTokenizers) {
  const auto dash = SplitPattern::from_literal("-", "dash");
  const auto split = [&](SplitBehavior behavior, bool invert = false) {
    return joined(dash.split("the-final--countdown", behavior, invert));
  };
  EXPECT_EQ(split(SplitBehavior::removed), "the|final|countdown");
  EXPECT_EQ(split(SplitBehavior::isolated), "the|-|final|-|-|countdown");
  EXPECT_EQ(split(SplitBehavior::merged_with_previous), "the-|final-|-|countdown");
  EXPECT_EQ(split(SplitBehavior::merged_with_next), "the|-final|-|-countdown");
  EXPECT_EQ(split(SplitBehavior::contiguous), "the|-|final|--|countdown");
  EXPECT_EQ(split(SplitBehavior::removed, true), "-|-|-");
}

TEST(SplitPattern, LiteralsAreTakenLiterally) {
  for (const std::string_view text : {"a|b", "[x]", "\\d", "^a$", "(?i:a)", "a.b", "é+", "#-{2}"}) {
    const auto pattern = SplitPattern::from_literal(text, "literal");
    EXPECT_EQ(joined(pattern.split("x" + std::string(text) + "y", SplitBehavior::isolated, false)),
              "x|" + std::string(text) + "|y");
  }
}

TEST(SplitPattern, CaselessLettersFoldAsInUnicode) {
  const auto s = SplitPattern::from_regex("(?i:'s|'LL)|'(?i:[dm])", "caseless");
  for (const std::string_view text : {"'s", "'S", "'\u017f", "'ll", "'Ll", "'d", "'M"})
    EXPECT_TRUE(s.spans(text).front().is_match) << text;
}

TEST(SplitPattern, ConstructsThatCouldDifferAreRefused) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"^a", "bare ^"},
      {"a$", "bare $"},
      {"a.", "bare ."},
      {"*a", "bare *"},
      {"a**", "quantifier on a quantifier"},
      {"a{2}+", "quantifier on a quantifier"},
      {"a{2}?", "quantifier on a quantifier"},
      {"a{,2}", "{ that opens no"},
      {"a{2", "{ that opens no"},
      {"a{3,2}", "runs backwards"},
      {"a{5000}", "above 1000"},
      {"a}", "bare }"},
      {"a]", "bare ]"},
      {"(a", "unclosed group"},
      {"a)", "unmatched )"},
      {"[a", "unclosed class"},
      {"[]a]", "empty class"},
      {"[a[^b]]", "negated class inside a class"},
      {"[a[[:alpha:]]]", "a POSIX class"},
      {"[[a]-z]", "a range that starts with a class"},
      {"[a-[z]]", "a range that ends with a class"},
      {"[a[]]", "an empty class"},
      {"[a[b", "an unclosed class"},
      {"[" + std::string(20, '[') + "a", "nested more than 8"},
      {"[a&&b]", "intersection"},
      {"[\\S]", "negated class inside a class"},
      {"[\\P{L}]", "negated class inside a class"},
      {"[z-a]", "runs backwards"},
      {"[\\s-a]", "starts with a class"},
      {"[a-\\s]", "ends with a class"},
      {"\\w", "\\\"w\""},
      {"\\b", "\\\"b\""},
      {"(a)\\1", "\\\"1\""},
      {"\\pL", "without {braces}"},
      {"\\p{Han}", "\\p{\"Han\"}; allowed: L Lu"},
      {"\\p{^L}", "allowed: L Lu"},
      {"\\x41", "without {braces}"},
      {"\\x{110000}", "bad \\x"},
      {"\\x{d800}", "bad \\x"},
      {"\\x{}", "bad \\x"},
      {"\\x{g}", "bad \\x"},
      {"a\\", "backslash at its end"},
      {"(?<n>a)", "group of another kind"},
      {"(?i)a", "group of another kind"},
      {"(?<=a)b", "group of another kind"},
      {"(*ACCEPT)", "group of another kind"},
      {"a(?=b)*", "quantifier on a look-ahead"},
      {"(?i:ss)", "fold to a ligature"},
      {"(?i:\u00e9)", "more than ASCII letters"},
      {"(?i:s+)", "more than ASCII letters"},
      {"(?i:s[st])", "letters before a class"},
      {"(?i:[st]t)", "letters after a class"},
      {"(?i:[a-z])", "in a class inside (?i:"},
      {"(?i:a", "unclosed group"},
      {"\xff", "not UTF-8"},
      {std::string(40, '(') + "a" + std::string(40, ')'), "nested more than 32"},
      {std::string(70000, 'a'), "70000 bytes"}};
  for (const auto& [pattern, reason] : cases) {
    SCOPED_TRACE(pattern.substr(0, 40));
    expect_refusal([&] { translate_pattern(pattern, "here"); }, {"here: ", reason});
  }
}

TEST(SplitPattern, AClassInsideAClassIsAUnion) {
  const auto pattern = SplitPattern::from_regex("[^(\\s|[.,[x-z]])]+", "here");
  std::string matches;
  for (const auto& span : pattern.spans("ab(c|d.e,f yg)h-"))
    if (span.is_match) matches += std::to_string(span.begin) + "-" + std::to_string(span.end) + " ";
  EXPECT_EQ(matches, "0-2 3-4 5-6 7-8 9-10 12-13 14-16 ");
}

TEST(SplitPattern, EmptyMatchesAreRefused) {
  for (const std::string_view pattern : {"", "a*", "a|", "(?=a)", "a{0}"})
    expect_refusal([&] { SplitPattern::from_regex(pattern, "here"); }, {"here", "empty string"});
  expect_refusal([] { SplitPattern::from_literal("", "here"); }, {"here", "empty"});
}

TEST(SplitPattern, APatternThatBacktracksForeverGivesUp) {
  const auto hostile = SplitPattern::from_regex("((a+)+)+[bc]", "here");
  expect_refusal([&] { hostile.spans(std::string(64, 'a')); }, {"here", "gave up"});
}

TEST(SplitPattern, DeepRepetitionNeedsNoStack) {
  const auto pattern = SplitPattern::from_regex("(?:(a|b)(c|d)?)+", "here");
  EXPECT_EQ(pattern.spans(std::string(1'000'000, 'a')).size(), 1U);
}

}  // namespace
}  // namespace lenscpp
