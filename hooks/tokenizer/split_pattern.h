// The regular expressions that cut text into words before byte-pair merging. The file writes them
// for Oniguruma; here they are translated to PCRE2, and what the two read differently is refused.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lenscpp::tokenizing {

/// What becomes of the matches of a split pattern (SplitDelimiterBehavior of `tokenizers`).
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// Unicode's White_Space as the members of a PCRE2 class, whose own \s also holds U+180E.
inline constexpr std::string_view kWhiteSpaceClass =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029})"
    R"(\x{202f}\x{205f}\x{3000})";

/// GPT-2's pattern, which a ByteLevel pre-tokenizer with use_regex stands for.
extern const std::string_view kGpt2Pattern;

/// Oniguruma's pattern as PCRE2 with UTF and UCP reads it. Throws std::invalid_argument naming
/// `where` and the construct when the two could differ. Not in the dialect: anchors, `.`, \w \b and
/// other classes than \s \S \d \p{..} \P{..}, nested classes, back references, flags but `(?i:` on
/// letters.
std::string translate_pattern(std::string_view onig_pattern, std::string_view where);

/// A compiled pattern, immutable: matching is const and may run on many threads at once.
class SplitPattern {
 public:
  /// From an Oniguruma expression. Throws std::invalid_argument when it is refused, wrong, or could
  /// match the empty string.
  static SplitPattern from_regex(std::string_view onig_pattern, std::string_view where);
  /// Matches this text and nothing else. Throws std::invalid_argument when it is empty.
  static SplitPattern from_literal(std::string_view text, std::string_view where);
  /// Matches one numeric character (Rust's char::is_numeric), for the Digits pre-tokenizer.
  static SplitPattern one_digit();
  /// Matches one character of punctuation as Punctuation and BertPreTokenizer understand it.
  static SplitPattern one_punctuation();
  /// Matches one character of white space.
  static SplitPattern one_white_space();
  /// Matches a word or a run of other symbols, for the Whitespace pre-tokenizer: \w+|[^\w\s]+ of
  /// Rust's regex.
  static SplitPattern words_and_symbols();
  /// Matches one character of a word (\w of Rust's regex), for added tokens that are single words.
  static SplitPattern one_word_character();

  struct Span {
    std::size_t begin = 0;  ///< bytes
    std::size_t end = 0;
    bool is_match = false;
  };
  /// Matches and what lies between them, in order, covering valid UTF-8 `text` without gaps. Throws
  /// std::invalid_argument when the pattern needs too many backtracks.
  std::vector<Span> spans(std::string_view text) const;
  /// The parts of `text` that the behavior leaves; `invert` swaps matches and gaps. None is empty.
  std::vector<std::string_view> split(std::string_view text, SplitBehavior behavior,
                                      bool invert) const;

 private:
  struct Compiled;
  explicit SplitPattern(std::shared_ptr<const Compiled> compiled);
  static SplitPattern compile(const std::string& pcre_pattern, std::string_view where);
  std::shared_ptr<const Compiled> compiled_;
};

}  // namespace lenscpp::tokenizing
