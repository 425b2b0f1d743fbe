// Strict JSON for files that others wrote: no duplicate keys, no bottomless nesting, valid UTF-8.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace lenscpp {

/// Parses `text`. Throws std::invalid_argument that begins with `origin` for anything but one JSON
/// value in UTF-8 without duplicate keys, nested at most 64 deep.
nlohmann::json parse_json(std::string_view text, const std::string& origin);

/// `value` as an error message shows it: its JSON, cut after 200 bytes.
std::string show(const nlohmann::json& value);

/// The bytes of a regular file. Throws std::system_error when unreadable, std::invalid_argument
/// when it is larger than `limit_bytes`.
std::string read_text(const std::filesystem::path& path, std::size_t limit_bytes);

}  // namespace lenscpp
