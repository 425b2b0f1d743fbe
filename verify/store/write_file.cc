#include "verify/store/write_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <string>
#include <system_error>

#include "verify/store/descriptor.h"

namespace lenscpp {
namespace fs = std::filesystem;
namespace {

[[noreturn]] void disk_refuses(const fs::path& path) {
  throw std::system_error(errno, std::generic_category(), "[store] " + path.string());
}

void sync(const fs::path& path, int flags) {
  Descriptor file(::open(path.c_str(), flags | O_CLOEXEC));
  if (file.fd < 0 || ::fsync(file.fd) != 0) disk_refuses(path);
}

void write_all(const fs::path& path, std::string_view text) {
  Descriptor file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.fd < 0) disk_refuses(path);
  while (!text.empty()) {
    ssize_t n = ::write(file.fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) disk_refuses(path);
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

}  // namespace

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

void rename_durably(const fs::path& from, const fs::path& to) {
  sync(from, O_RDONLY);
  if (::rename(from.c_str(), to.c_str()) != 0) disk_refuses(to);
  sync(folder_of(to), O_RDONLY | O_DIRECTORY);
}

void write_file(const fs::path& path, std::string_view text) {
  static std::atomic<unsigned> counter{0};
  fs::path temporary =
      folder_of(path) / ("." + path.filename().string() + "." + std::to_string(::getpid()) + "." +
                         std::to_string(counter++) + ".part");
  try {
    write_all(temporary, text);
    rename_durably(temporary, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
}

}  // namespace lenscpp
