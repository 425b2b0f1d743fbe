#include "verify/store/sealed_format.h"

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>

#include "hooks/nearest.h"
#include "verify/store/sha256.h"

namespace lenscpp {
namespace fs = std::filesystem;
using nlohmann::json;

std::string digest_of(const RowGroups& groups) { return sha256(json(groups).dump()); }

std::string digest_of(const Array& value) {
  return sha256(std::span<const std::byte>(value.bytes(), value.nbytes()));
}

bool is_special(const std::string& name) {
  return name == kDigests || name == kRootDigest || name == kStatus;
}

std::vector<std::string> parents_of(const std::string& name) {
  std::vector<std::string> parents;
  for (auto at = name.find('/', 1); at != name.npos; at = name.find('/', at + 1))
    parents.push_back(name.substr(0, at));
  return parents;
}

FileKind kind_from_name(const std::string& name, const std::string& origin) {
  for (FileKind kind : {FileKind::run, FileKind::grid, FileKind::shard, FileKind::batch})
    if (name_of(kind) == name) return kind;
  throw std::invalid_argument("[store] " + origin + ": a file of kind " + in_quotes(name) +
                              "; allowed: run, grid, shard, batch");
}

void disk_refuses(int error_number, const fs::path& path) {
  throw std::system_error(error_number, std::generic_category(), "[store] " + path.string());
}

std::string_view name_of(FileKind kind) {
  switch (kind) {
    case FileKind::run:
      return "run";
    case FileKind::grid:
      return "grid";
    case FileKind::shard:
      return "shard";
    case FileKind::batch:
      return "batch";
  }
  throw std::logic_error("[store] not a FileKind");
}

Status status_from_name(std::string_view name) {
  for (Status status : {Status::verified, Status::invalid, Status::unverified})
    if (name_of(status) == name) return status;
  throw std::invalid_argument("[store] " + in_quotes(name) +
                              " is not a status; allowed: VERIFIED, INVALID, UNVERIFIED");
}

}  // namespace lenscpp
