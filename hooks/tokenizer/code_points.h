// Classes of characters that normalizers and pre-tokenizers ask for, as `tokenizers` has them.
#pragma once

#include <string>
#include <string_view>

namespace lenscpp::tokenizing {

/// Whether NFC, NFD, NFKC or NFKD of `tokenizers` decompose or reorder it.
bool is_normalized_somehow(char32_t c);
/// What StripAccents removes: combining marks.
bool is_mark(char32_t c);
/// What BertNormalizer removes as an accent.
bool is_nonspacing_mark(char32_t c);
/// What BertNormalizer cleans away: controls, formats, private use, U+FFFD.
bool is_control(char32_t c);
/// What BertNormalizer puts spaces around.
bool is_chinese(char32_t c);
/// Appends the character in lower case, without regard to its neighbours.
void append_lowercase(std::string& out, char32_t c);
/// The members of a PCRE2 class: what Punctuation and BertPreTokenizer cut at.
std::string punctuation_class();

}  // namespace lenscpp::tokenizing
