// Messages about files that nobody has checked yet: whatever they hold must print.
#include "hooks/tokenizer/refusal.h"

#include <fmt/format.h>

#include <cstdint>
#include <stdexcept>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {

void refuse(std::string_view where, std::string_view what) {
  throw std::invalid_argument(fmt::format("[tokenizer] {}: {}", where, what));
}

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kLimit_bytes = 60;
  std::string out = "\"";
  for (std::size_t at = 0; at < text.size();) {
    const utf8::Step s = utf8::step(text, at);
    if (at + s.length > kLimit_bytes) {
      return out + fmt::format("\"... ({} bytes)", text.size());
    }
    if (!s.valid || s.code_point < 0x20 || s.code_point == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<std::uint8_t>(text[at]));
      at += 1;
      continue;
    }
    out.append(text.substr(at, s.length));
    at += s.length;
  }
  return out + "\"";
}

}  // namespace lenscpp::tokenizing
