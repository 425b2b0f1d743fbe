// What the writer and the reader of sealed files agree on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "verify/store/sealed_file.h"

namespace lenscpp {

constexpr std::int64_t kFormatVersion = 1;
constexpr const char *kFormat = "lenscpp", *kDigests = "/digests", *kRootDigest = "/root_digest",
                     *kStatus = "/status";

/// Groups of rows of an array, and the digest of each.
using RowGroups = std::vector<std::pair<std::int64_t, std::string>>;
/// The digest of an array that was written by groups of rows.
std::string digest_of(const RowGroups& groups);
std::string digest_of(const Array& value);

/// Of /digests, /root_digest and /status, which no digest covers.
bool is_special(const std::string& name);
/// "/act/x" -> "/act": the groups that must be there for it.
std::vector<std::string> parents_of(const std::string& name);
/// Throws std::invalid_argument naming the file and what is allowed.
FileKind kind_from_name(const std::string& name, const std::string& origin);
/// Throws std::system_error of this errno.
[[noreturn]] void disk_refuses(int error_number, const std::filesystem::path& path);

}  // namespace lenscpp
