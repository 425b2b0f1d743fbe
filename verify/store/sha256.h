// SHA-256 of what lies on a disk.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace lenscpp {

/// The SHA-256 of `bytes`: 64 lower-case hexadecimal digits (FIPS 180-4).
std::string sha256(std::span<const std::byte> bytes);
std::string sha256(std::string_view text);

}  // namespace lenscpp
