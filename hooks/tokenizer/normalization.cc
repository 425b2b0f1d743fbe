// utf8proc decomposes and composes; what is newer than the tables of `tokenizers` is left alone.
#include "hooks/tokenizer/normalization.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "hooks/tokenizer/code_points.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

using Buffer = std::vector<std::int32_t>;

bool composes(NormalizationForm form) {
  return form == NormalizationForm::nfc || form == NormalizationForm::nfkc;
}

int combining_class(std::int32_t c) {
  if (!is_normalized_somehow(static_cast<char32_t>(c))) return 0;
  return utf8proc_get_property(c)->combining_class;
}

// Appends what `c` decomposes into; `options` are utf8proc's.
void decompose(std::int32_t c, int options, Buffer& out) {
  std::array<std::int32_t, 32> parts{};  // the longest, U+FDFA, has 18
  int boundary = 0;
  const auto n = utf8proc_decompose_char(c, parts.data(), parts.size(),
                                         static_cast<utf8proc_option_t>(options), &boundary);
  if (n < 0 || static_cast<std::size_t>(n) > parts.size())
    refuse("normalize", "a character with no decomposition that utf8proc can give");
  out.insert(out.end(), parts.begin(), parts.begin() + n);
}

Buffer decomposed(std::string_view text, NormalizationForm form) {
  int options = UTF8PROC_DECOMPOSE;
  if (form == NormalizationForm::nfkc || form == NormalizationForm::nfkd)
    options |= UTF8PROC_COMPAT;
  Buffer out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const utf8::Step s = utf8::step(text, at);
    at += s.length;
    const auto c = static_cast<std::int32_t>(s.code_point);
    if (is_normalized_somehow(s.code_point)) {
      decompose(c, options, out);
    } else {
      out.push_back(c);
    }
  }
  return out;
}

// Marks that follow one another are ordered by their combining class.
void reorder(Buffer& buffer) {
  const auto is_mark = [](std::int32_t c) { return combining_class(c) != 0; };
  for (auto at = buffer.begin(); at != buffer.end();) {
    at = std::find_if(at, buffer.end(), is_mark);
    const auto end = std::find_if_not(at, buffer.end(), is_mark);
    std::stable_sort(at, end, [](std::int32_t a, std::int32_t b) {
      return combining_class(a) < combining_class(b);
    });
    at = end;
  }
}

bool decomposes(std::int32_t c) { return utf8proc_get_property(c)->decomp_seqindex != UINT16_MAX; }

// A mark or a composite that `tokenizers` takes for a letter, since it is newer.
bool is_newer(std::int32_t c) {
  if (c < 0x300 || is_normalized_somehow(static_cast<char32_t>(c))) return false;
  return decomposes(c) || utf8proc_get_property(c)->combining_class != 0;
}

// Nothing composes across what is newer.
Buffer composed(Buffer buffer) {
  Buffer out;
  out.reserve(buffer.size());
  for (std::size_t at = 0; at < buffer.size();) {
    const auto first = buffer.begin() + static_cast<std::ptrdiff_t>(at);
    const auto end = std::find_if(first, buffer.end(), is_newer);
    if (const std::ptrdiff_t n = end - first; n > 0) {
      constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
      const auto left = utf8proc_normalize_utf32(&*first, n, kOptions);
      if (left < 0) refuse("normalize", utf8proc_errmsg(left));
      for (auto c = first; c != first + left; ++c) {
        // What composed into a newer character than `tokenizers` knows is taken apart again.
        if (is_newer(*c)) {
          decompose(*c, UTF8PROC_DECOMPOSE, out);
        } else {
          out.push_back(*c);
        }
      }
      at += static_cast<std::size_t>(n);
    }
    if (at < buffer.size()) out.push_back(buffer[at++]);
  }
  return out;
}

void append_normalized(std::string& out, std::string_view text, NormalizationForm form) {
  Buffer buffer = decomposed(text, form);
  reorder(buffer);
  if (composes(form)) buffer = composed(std::move(buffer));
  for (const std::int32_t c : buffer) utf8::append(out, static_cast<char32_t>(c));
}

// Below these code points a character stays as it is unless a mark follows it.
char32_t first_that_changes(NormalizationForm form) {
  return form == NormalizationForm::nfc ? 0x300 : 0x80;
}

// The byte at which the first character starts that may change, or the end.
std::size_t next_that_changes(std::string_view text, std::size_t at, char32_t limit) {
  const std::uint8_t lead = limit == 0x80 ? 0x80 : 0xCC;  // of U+0300
  while (at < text.size() && static_cast<std::uint8_t>(text[at]) < lead) ++at;
  return at;
}

}  // namespace

std::string normalized(std::string_view text, NormalizationForm form) {
  const char32_t limit = first_that_changes(form);
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    std::size_t begin = next_that_changes(text, at, limit);
    if (begin > at && begin < text.size())
      begin -= utf8::last(text.substr(at, begin - at)).length;  // a mark may join it
    out.append(text.substr(at, begin - at));
    if (begin == text.size()) break;
    // ASCII composes with nothing before it: up to there is a stretch of its own.
    std::size_t end = next_that_changes(text, begin, limit);
    while (end < text.size() && static_cast<std::uint8_t>(text[end]) >= 0x80) ++end;
    append_normalized(out, text.substr(begin, end - begin), form);
    at = end;
  }
  return out;
}

}  // namespace lenscpp::tokenizing
