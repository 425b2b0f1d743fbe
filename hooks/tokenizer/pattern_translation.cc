// Oniguruma (Ruby syntax, as `tokenizers` compiles it) to PCRE2, for a dialect small enough that
// both read it alike. Character classes are written out where the Unicode versions or definitions
// differ.
#include <fmt/format.h>

#include <array>
#include <cctype>
#include <optional>

#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/split_pattern.h"
#include "hooks/tokenizer/unicode_extras.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

struct Category {
  std::string_view name;
  std::string_view extras;  // what a later Unicode than PCRE2's put into it
};
constexpr std::array kCategories = {
    Category{"L", unicode_extras::kL},   Category{"Lu", unicode_extras::kLu},
    Category{"Ll", unicode_extras::kLl}, Category{"Lt", unicode_extras::kLt},
    Category{"Lm", unicode_extras::kLm}, Category{"Lo", unicode_extras::kLo},
    Category{"M", unicode_extras::kM},   Category{"N", unicode_extras::kN},
    Category{"Nd", unicode_extras::kNd}, Category{"P", unicode_extras::kP},
    Category{"S", unicode_extras::kS}};

bool is_ascii_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {}

  std::string run() {
    alternation(0);
    if (!at_end()) no("an unmatched )");
    return std::move(out_);
  }

 private:
  bool at_end() const { return at_ >= pattern_.size(); }
  bool sees(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool eat(std::string_view text) {
    if (!sees(text)) return false;
    at_ += text.size();
    return true;
  }
  [[noreturn]] void no(std::string_view construct) const {
    refuse(where_,
           fmt::format("pattern {} has {} at byte {}; allowed: literals, \\s \\S \\d \\p{{L}} "
                       "and the like, [classes], groups, (?i:letters), look-ahead, "
                       "? * + {{m,n}}",
                       in_quotes(pattern_), construct, at_));
  }

  void alternation(int depth) {
    if (depth > 32) no("groups nested more than 32 deep");
    while (true) {
      while (!at_end() && !sees("|") && !sees(")")) term(depth);
      if (!eat("|")) return;
      out_ += '|';
    }
  }

  void term(int depth) {
    if (sees("(?=") || sees("(?!")) {
      group(depth);
      if (!at_end() && std::string_view("?*+{").find(pattern_[at_]) != std::string_view::npos)
        no("a quantifier on a look-ahead");
      return;
    }
    atom(depth);
    quantifier();
  }

  void atom(int depth) {
    if (sees("(")) return group(depth);
    if (eat("[")) return character_class();
    if (eat("\\")) {
      const Escape e = escape();
      out_ += e.negated ? "[^" : "[";
      out_ += e.members;
      out_ += ']';
      return;
    }
    const char c = pattern_[at_];
    if (std::string_view("^$.?*+{}]").find(c) != std::string_view::npos)
      no(fmt::format("a bare {}", c));
    out_ += literal(code_point());
  }

  void group(int depth) {
    if (eat("(?i:")) return caseless_group();
    if (eat("(?:")) {
      out_ += "(?:";
    } else if (eat("(?=")) {
      out_ += "(?=";
    } else if (eat("(?!")) {
      out_ += "(?!";
    } else if (sees("(?") || sees("(*")) {
      no("a group of another kind");
    } else {
      at_ += 1;  // a capture, whose number nothing here can refer to
      out_ += "(?:";
    }
    alternation(depth + 1);
    if (!eat(")")) no("an unclosed group");
    out_ += ')';
  }

  // Only letters, apostrophes and | : Oniguruma folds "ss", "st", "ff", "fi", "fl" also to single
  // characters (ß, ligatures), PCRE2 does not.
  void caseless_group() {
    out_ += "(?i:";
    std::string run_of_letters;
    while (!at_end() && !sees(")")) {
      const char c = pattern_[at_];
      if (c == '[') {
        at_ += 1;
        caseless_class();
        run_of_letters.clear();
        continue;
      }
      if (!is_ascii_letter(c) && c != '\'' && c != '|') no("more than ASCII letters inside (?i:");
      run_of_letters += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      for (const std::string_view folded : {"ss", "st", "ff", "fi", "fl"})
        if (run_of_letters.ends_with(folded)) no("letters inside (?i: that fold to a ligature");
      out_ += c;
      at_ += 1;
    }
    if (!eat(")")) no("an unclosed group");
    out_ += ')';
  }

  // A class next to letters could form a ligature too, so it must stand alone in its alternative.
  void caseless_class() {
    if (!out_.ends_with(":") && !out_.ends_with("|")) no("letters before a class inside (?i:");
    const std::size_t begin = at_;
    while (!at_end() && is_ascii_letter(pattern_[at_])) at_ += 1;
    if (begin == at_ || !sees("]")) no("more than ASCII letters in a class inside (?i:");
    out_ += fmt::format("[{}]", pattern_.substr(begin, at_ - begin));
    at_ += 1;
    if (!sees("|") && !sees(")")) no("letters after a class inside (?i:");
  }

  void character_class() {
    out_ += eat("^") ? "[^" : "[";
    if (sees("]")) no("an empty class");
    while (!sees("]")) {
      if (at_end()) no("an unclosed class");
      class_item(0);
    }
    at_ += 1;
    out_ += ']';
  }

  // A class inside a class is a union: its members are as good as the outer one's.
  void class_item(int depth) {
    if (eat("[")) {
      if (depth > 8) no("classes nested more than 8 deep");
      if (sees("^")) no("a negated class inside a class");
      if (sees(":")) no("a POSIX class");
      if (sees("]")) no("an empty class");
      while (!eat("]")) {
        if (at_end()) no("an unclosed class");
        class_item(depth + 1);
      }
      if (sees("-") && !sees("-]")) no("a range that starts with a class");
      return;
    }
    const Escape low = class_atom();
    out_ += low.members;
    if (!sees("-") || sees("-]")) return;
    if (!low.single) no("a range that starts with a class");
    at_ += 1;
    const Escape high = class_atom();
    if (!high.single) no("a range that ends with a class");
    if (*high.single < *low.single) no("a range that runs backwards");
    out_ += '-';
    out_ += high.members;
  }

  struct Escape {
    std::string members;  // as they stand inside a PCRE2 class
    bool negated = false;
    std::optional<char32_t> single = std::nullopt;
  };

  Escape class_atom() {
    if (at_end()) no("an unclosed class");
    if (sees("[")) no("a range that ends with a class");
    if (sees("&&")) no("an intersection of classes");
    if (!eat("\\")) return one(code_point());
    const Escape e = escape();
    if (e.negated) no("a negated class inside a class");
    return e;
  }

  static Escape one(char32_t c) { return {literal(c), false, c}; }

  Escape escape() {
    if (at_end()) no("a backslash at its end");
    const char c = pattern_[at_++];
    switch (c) {
      case 's':
        return {std::string(kWhiteSpaceClass)};
      case 'S':
        return {std::string(kWhiteSpaceClass), true};
      case 'd':
        return property("Nd", false);
      case 'p':
        return property(braced(), false);
      case 'P':
        return property(braced(), true);
      case 'x':
        return one(hexadecimal(braced()));
      case 'n':
        return one('\n');
      case 'r':
        return one('\r');
      case 't':
        return one('\t');
      case 'f':
        return one('\f');
      default:
        break;
    }
    if (!std::ispunct(static_cast<unsigned char>(c))) no(fmt::format("\\{}", in_quotes({&c, 1})));
    return one(static_cast<unsigned char>(c));
  }

  std::string_view braced() {
    const std::size_t end = pattern_.find('}', at_);
    if (!sees("{") || end == std::string_view::npos) no("an escape without {braces}");
    const std::string_view inside = pattern_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return inside;
  }

  Escape property(std::string_view name, bool negated) const {
    for (const Category& category : kCategories) {
      if (category.name == name)
        return {fmt::format("\\p{{{}}}{}", name, category.extras), negated};
    }
    std::string names;
    for (const Category& category : kCategories) names += fmt::format(" {}", category.name);
    refuse(where_, fmt::format("pattern {} has \\p{{{}}}; allowed:{}", in_quotes(pattern_),
                               in_quotes(name), names));
  }

  char32_t hexadecimal(std::string_view digits) const {
    char32_t value = 0;
    for (const char c : digits) {
      if (!std::isxdigit(static_cast<unsigned char>(c)) || value > 0x10FFFF) no("a bad \\x{...}");
      const int lower = std::tolower(static_cast<unsigned char>(c));
      value = value * 16 + static_cast<char32_t>(lower <= '9' ? lower - '0' : lower - 'a' + 10);
    }
    if (digits.empty() || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
      no("a bad \\x{...}");
    return value;
  }

  // In Ruby's syntax a + or ? after {m,n} is a second quantifier, in PCRE2 it changes the first.
  void quantifier() {
    if (eat("{")) return interval();
    for (const std::string_view simple : {"?", "*", "+"}) {
      if (!eat(simple)) continue;
      out_ += simple;
      if (eat("+"))
        out_ += '+';
      else if (eat("?"))
        out_ += '?';
      if (sees("?") || sees("*") || sees("+") || sees("{")) no("a quantifier on a quantifier");
      return;
    }
  }

  void interval() {
    const std::optional<int> low = number();
    std::optional<int> high = low;
    const bool has_comma = eat(",");
    if (has_comma) high = number();
    if (!low || !eat("}")) no("a { that opens no {m}, {m,} or {m,n}");
    if (high && *high < *low) no("an interval that runs backwards");
    out_ += fmt::format("{{{}{}{}}}", *low, has_comma ? "," : "",
                        has_comma && high ? std::to_string(*high) : "");
    if (sees("?") || sees("*") || sees("+") || sees("{")) no("a quantifier on a quantifier");
  }

  std::optional<int> number() {
    const std::size_t begin = at_;
    int value = 0;
    while (!at_end() && std::isdigit(static_cast<unsigned char>(pattern_[at_]))) {
      value = value * 10 + (pattern_[at_++] - '0');
      if (value > 1000) no("an interval above 1000");
    }
    if (begin == at_) return std::nullopt;
    return value;
  }

  char32_t code_point() {
    const utf8::Step s = utf8::step(pattern_, at_);
    if (!s.valid) no("bytes that are not UTF-8");
    at_ += s.length;
    return s.code_point;
  }

  static std::string literal(char32_t c) {
    return fmt::format("\\x{{{:x}}}", static_cast<unsigned>(c));
  }

  std::string_view pattern_;
  std::string_view where_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string translate_pattern(std::string_view onig_pattern, std::string_view where) {
  constexpr std::size_t kLimit_bytes = 65536;
  if (onig_pattern.size() > kLimit_bytes)
    refuse(where, fmt::format("pattern of {} bytes; allowed: at most {}", onig_pattern.size(),
                              kLimit_bytes));
  return Translator(onig_pattern, where).run();
}

}  // namespace lenscpp::tokenizing
