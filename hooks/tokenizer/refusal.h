// How this folder says no: one exception, one form of message.
#pragma once

#include <string>
#include <string_view>

namespace lenscpp::tokenizing {

/// Throws std::invalid_argument("[tokenizer] " + where + ": " + what).
[[noreturn]] void refuse(std::string_view where, std::string_view what);
/// Text from a file, quoted for a message: valid UTF-8, at most some 60 bytes, controls escaped.
std::string in_quotes(std::string_view text);

}  // namespace lenscpp::tokenizing
