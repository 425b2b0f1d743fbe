// Files that are there whole or not at all, also after a power cut.
#pragma once

#include <filesystem>
#include <string_view>

namespace lenscpp {

/// The folder that a file is in: "." where its path names none.
std::filesystem::path folder_of(const std::filesystem::path& path);
/// Flushes a finished file to the disk, gives it its name, and flushes the folder. Throws
/// std::system_error.
void rename_durably(const std::filesystem::path& from, const std::filesystem::path& to);
/// Writes a text under a temporary name in the same folder and renames it durably. Throws
/// std::system_error; what stood at `path` is then as it was.
void write_file(const std::filesystem::path& path, std::string_view text);

}  // namespace lenscpp
