// Models beside the program, wherever that was installed.
#include "patching/command/shipped_models.h"

#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp::command {
namespace fs = std::filesystem;
fs::path program_path() {
#ifdef __APPLE__
  std::array<char, 4096> path{};
  std::uint32_t size = path.size();
  if (_NSGetExecutablePath(path.data(), &size) != 0) return {};
  fs::path program = path.data();
#else
  fs::path program = "/proc/self/exe";
#endif
  std::error_code error;
  fs::path found = fs::canonical(program, error);
  return error ? fs::path() : found;
}

namespace {

bool is_checkpoint(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / "config.json", error);
}

}  // namespace

std::vector<fs::path> model_folders() {
  std::vector<fs::path> folders;
  if (const char* list = std::getenv("LENSCPP_MODELS")) {
    std::string_view rest = list;
    while (!rest.empty()) {
      std::size_t end = std::min(rest.find(':'), rest.size());
      if (end > 0) folders.emplace_back(rest.substr(0, end));
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
  }
  fs::path program = program_path().parent_path();
  if (program.empty()) return folders;
  folders.push_back(program.parent_path() / "models");  // lenscpp/bin in the package
  folders.push_back(program.parent_path() / "share" / "lenscpp" /
                    "models");  // build tree, install prefix
  return folders;
}

std::vector<std::string> shipped_models() {
  std::set<std::string> names;
  for (const fs::path& folder : model_folders()) {
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error))
      if (is_checkpoint(entry->path())) names.insert(entry->path().filename().string());
  }
  return {names.begin(), names.end()};
}

fs::path resolve_model(const std::string& model) {
  if (model.empty()) throw std::invalid_argument("[model] no name and no folder was given");
  bool is_name = model.find('/') == std::string::npos && model != "." && model != "..";
  if (is_name)
    for (const fs::path& folder : model_folders())
      if (is_checkpoint(folder / model)) return folder / model;
  std::error_code error;
  if (fs::is_directory(model, error)) return model;
  std::string found = "[model] " + in_quotes(model) +
                      (fs::exists(model, error) ? " is not a folder"
                       : is_name                ? " is neither a folder nor a model that ships"
                                                : ": no such folder");
  std::string names, places;
  for (const std::string& name : shipped_models()) names += (names.empty() ? "" : ", ") + name;
  for (const fs::path& folder : model_folders())
    places += (places.empty() ? "" : ", ") + folder.string();
  throw std::invalid_argument(
      found +
      "; needed: a Hugging Face folder on this machine (nothing is downloaded), or one of: " +
      (names.empty() ? "none found" : names) + " (in " + places + ")");
}

}  // namespace lenscpp::command
