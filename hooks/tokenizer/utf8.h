// UTF-8 read one code point at a time, and refused or replaced exactly as Rust's `str` does it,
// since the `tokenizers` package is what we must agree with.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace lenscpp::utf8 {

/// One step through a byte string: a code point, or the longest prefix of one that went wrong.
struct Step {
  std::size_t length = 1;  ///< bytes, at least 1
  bool valid = false;
  char32_t code_point = 0xFFFD;
};

/// The step at byte `at`, which must lie inside `bytes`. Surrogates and overlong forms are invalid.
Step step(std::string_view bytes, std::size_t at);
/// The byte offset of the first thing that is not UTF-8, or nothing.
std::optional<std::size_t> first_invalid(std::string_view bytes);
/// The bytes with every invalid stretch replaced by one U+FFFD (Unicode's "maximal subpart" rule).
std::string replace_invalid(std::string_view bytes);
/// Appends a Unicode scalar value to `out`.
void append(std::string& out, char32_t code_point);
/// The last code point of valid, non-empty text.
Step last(std::string_view text);
/// Unicode's White_Space property, which has not changed since Unicode 6.3.
bool is_white_space(char32_t code_point);

}  // namespace lenscpp::utf8
