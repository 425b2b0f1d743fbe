// Quoting and edit distances for error messages.
#include "hooks/nearest.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <utility>
#include <vector>

namespace lenscpp {
namespace {

// Longer names are compared by their beginnings: messages must not cost more than what they report.
constexpr std::size_t kLongest = 128;

char lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

// Edit distance in half steps: another case, or two neighbours swapped, is half a change.
int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> before(b.size() + 1), last(b.size() + 1),
      row(b.size() + 1);  // of a's i-2, i-1, i
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(2 * j);
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before.swap(last);
    last.swap(row);
    row[0] = static_cast<int>(2 * i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      int change = a[i - 1] == b[j - 1] ? 0 : lower(a[i - 1]) == lower(b[j - 1]) ? 1 : 2;
      row[j] = std::min({last[j - 1] + change, last[j] + 2, row[j - 1] + 2});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLimit = 200;
  bool cut = text.size() > kLimit;
  if (cut) {
    std::size_t end = kLimit;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;  // whole UTF-8
    text = text.substr(0, end);
  }
  std::string result = "\"";
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      constexpr char kHex[] = "0123456789abcdef";
      result += "\\x";
      result += kHex[byte >> 4];
      result += kHex[byte & 15];
    } else {
      result += c;
    }
  }
  return result + (cut ? "...\"" : "\"");
}

std::string nearest_names(std::string_view found, std::span<const std::string> allowed, int count) {
  found = found.substr(0, kLongest);
  std::vector<std::pair<int, std::size_t>> ranked;
  for (std::size_t i = 0; i < allowed.size(); ++i)
    ranked.emplace_back(edit_distance(found, std::string_view(allowed[i]).substr(0, kLongest)), i);
  auto kept = std::min(ranked.size(), static_cast<std::size_t>(std::max(count, 0)));
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(kept),
                    ranked.end());
  std::string result;
  for (std::size_t i = 0; i < kept; ++i)
    result += (i == 0 ? "" : ", ") + in_quotes(allowed[ranked[i].second]);
  return result;
}

}  // namespace lenscpp
