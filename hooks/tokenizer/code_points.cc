// The tables are those of `tokenizers`, not of a Unicode version: see unicode_tables.h.
#include "hooks/tokenizer/code_points.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstdint>

#include "hooks/tokenizer/unicode_tables.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

template <class Table>
bool is_in(const Table& table, char32_t c) {
  const auto after = std::upper_bound(
      table.begin(), table.end(), c, [](char32_t x, const auto& range) { return x < range.first; });
  return after != table.begin() && c <= std::prev(after)->second;
}

}  // namespace

bool is_normalized_somehow(char32_t c) {
  return c >= 0xA0 && is_in(unicode_tables::kNormalized, c);
}

bool is_mark(char32_t c) { return c >= 0x300 && is_in(unicode_tables::kMark, c); }

bool is_nonspacing_mark(char32_t c) {
  return c >= 0x300 && is_in(unicode_tables::kNonspacingMark, c);
}

bool is_control(char32_t c) {
  if (c >= 0x20 && c < 0x7F) return false;
  return is_in(unicode_tables::kControl, c);
}

bool is_chinese(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B81F) ||
         (c >= 0x2B920 && c <= 0x2CEAF) || (c >= 0xF900 && c <= 0xFAFF) ||
         (c >= 0x2F800 && c <= 0x2FA1F);
}

void append_lowercase(std::string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 0x20 : c));
    return;
  }
  if (c == 0x130) {  // the only letter that is two in lower case
    out += "i\u0307";
    return;
  }
  const auto& newer = unicode_tables::kNewerLowercase;
  const auto found = std::lower_bound(newer.begin(), newer.end(), c,
                                      [](const auto& pair, char32_t x) { return pair.first < x; });
  if (found != newer.end() && found->first == c) return utf8::append(out, found->second);
  const auto lower = utf8proc_tolower(static_cast<std::int32_t>(c));
  utf8::append(out, static_cast<char32_t>(lower));
}

std::string punctuation_class() {
  std::string members;
  for (const auto& [low, high] : unicode_tables::kPunctuation)
    members += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", static_cast<std::uint32_t>(low),
                           static_cast<std::uint32_t>(high));
  return members;
}

}  // namespace lenscpp::tokenizing
