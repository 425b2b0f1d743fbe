// How an error message names things: what was found, quoted, and the allowed names nearest to it.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lenscpp {

/// `text` in double quotes for an error message: control characters escaped, cut after 200 bytes.
std::string in_quotes(std::string_view text);

/// The `count` members of `allowed` with the least edit distance to `found`, nearest first, quoted
/// and joined by ", ". Empty when `allowed` is.
std::string nearest_names(std::string_view found, std::span<const std::string> allowed,
                          int count = 3);

}  // namespace lenscpp
