// Finding and loading the shared object of the simulated device, and its limits as JSON.
#include "verify/device/simulated.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "hooks/build_info.h"
#include "hooks/nearest.h"
#include "verify/verified_cache.h"

namespace lenscpp {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

#ifdef __APPLE__
constexpr const char* kLibrary = "liblenscpp_simulated.dylib";
#else
constexpr const char* kLibrary = "liblenscpp_simulated.so";
#endif

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[simulated] " + what);
}

// Reads the members of an object that are known; whatever else it holds is an error.
class Members {
 public:
  Members(const json& object, std::string what) : object_(object), what_(std::move(what)) {
    if (!object.is_object()) refuse(what_ + ": needed: an object; found: " + object.type_name());
  }
  template <class T>
  void read(const char* key, T& value, bool (json::*is)() const noexcept, const char* needed) {
    known_.emplace_back(key);
    auto found = object_.find(key);
    if (found == object_.end()) return;
    if (!((*found).*is)())
      refuse(what_ + "." + key + ": needed: " + needed + "; found: " + found->dump());
    value = found->template get<T>();
  }
  const json* member(const char* key) {
    known_.emplace_back(key);
    auto found = object_.find(key);
    return found != object_.end() ? &*found : nullptr;
  }
  void refuse_others() const {
    for (const auto& [key, value] : object_.items())
      if (std::ranges::find(known_, key) == known_.end())
        refuse(what_ + " has no " + in_quotes(key) + "; nearest: " + nearest_names(key, known_));
  }

 private:
  const json& object_;
  std::string what_;
  std::vector<std::string> known_;
};

FaultSpec fault_from_json(const json& object) {
  FaultSpec spec;
  Members members(object, "faults");
  members.read("name", spec.name, &json::is_string, "a text");
  members.read("seed", spec.seed, &json::is_number_unsigned, "a number from 0 on");
  if (const json* parameters = members.member("parameters")) {
    if (!parameters->is_object()) refuse("faults.parameters: needed: an object of numbers");
    for (const auto& [key, value] : parameters->items()) {
      if (!value.is_number()) refuse("faults.parameters." + key + ": needed: a number");
      spec.parameters[key] = value.get<double>();
    }
  }
  members.refuse_others();
  device_fault_info(spec.name);
  return spec;
}

// The folders where the shared object may lie: beside the program or module that this is a part of
// (an installed package; its program is one below), and lib beside bin (build tree, installation).
std::vector<fs::path> candidates() {
  std::vector<fs::path> files;
  // A program that was found through PATH is called by its bare name: against the working directory
  // that would be whatever lies there.
  std::vector<fs::path> objects;
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&simulated_device_loaded), &self) != 0 &&
      fs::path(self.dli_fname).is_absolute())
    objects.emplace_back(self.dli_fname);
#ifdef __linux__
  objects.emplace_back("/proc/self/exe");
#endif
  for (const fs::path& object : objects) {
    std::error_code error;
    fs::path folder = fs::canonical(object, error).parent_path();
    if (!error)
      for (const char* beside : {".", "..", "../lib", "../lib64"})
        files.push_back(folder / beside / kLibrary);
  }
  return files;
}

struct Loaded {
  SimulatedDevice* device = nullptr;
  std::string file;
};

Loaded load() {
  void* handle = nullptr;
  std::string file, tried;
  for (const fs::path& candidate : candidates()) {
    std::error_code error;
    if (!fs::exists(candidate, error)) continue;
    file = candidate.string();
    handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr)
      throw DeviceError("[device] \"simulated\" cannot be loaded: " + std::string(dlerror()));
    break;
  }
  if (handle == nullptr) {  // where the linker looks: the run path that find_package(lenscpp) sets
    file = kLibrary;
    handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  }
  if (handle == nullptr)
    throw DeviceError("[device] \"simulated\" is not there: " + std::string(kLibrary) +
                      " is neither beside this program, nor in lib beside its folder, nor where "
                      "the linker looks");
  auto build = reinterpret_cast<const char* (*)()>(dlsym(handle, "lenscpp_simulated_build"));
  auto make = reinterpret_cast<SimulatedDevice* (*)()>(dlsym(handle, "lenscpp_simulated_device"));
  std::string ours = std::string(lenscpp_version()) + " " + build_commit();
  if (build == nullptr || make == nullptr || ours != build())
    throw DeviceError("[device] \"simulated\": " + file + " is of another build (" +
                      (build != nullptr ? build() : "unknown") + ") than this program (" + ours +
                      ")");
  return {make(), file};
}

std::atomic<SimulatedDevice*>& the_device() {
  static std::atomic<SimulatedDevice*> device = nullptr;
  return device;
}

}  // namespace

json to_json(const SimulatedLimits& limits) {
  json faults = json::array();
  for (const FaultSpec& spec : limits.faults)
    faults.push_back({{"name", spec.name}, {"parameters", spec.parameters}, {"seed", spec.seed}});
  return {{"float64", limits.float64},
          {"max_buffer_bytes", limits.max_buffer_bytes},
          {"missing", limits.missing},
          {"fallback", limits.fallback},
          {"aborts_at", limits.aborts_at},
          {"hangs_at", limits.hangs_at},
          {"faults", faults}};
}

SimulatedLimits simulated_limits_from_json(const json& object) {
  SimulatedLimits limits;
  Members members(object, "limits");
  members.read("float64", limits.float64, &json::is_boolean, "true or false");
  members.read("max_buffer_bytes", limits.max_buffer_bytes, &json::is_number_integer,
               "a whole number of bytes");
  members.read("fallback", limits.fallback, &json::is_boolean, "true or false");
  members.read("aborts_at", limits.aborts_at, &json::is_string, "the name of an operator");
  members.read("hangs_at", limits.hangs_at, &json::is_string, "the name of an operator");
  if (limits.max_buffer_bytes < 0) refuse("limits.max_buffer_bytes is negative");
  auto list = [&](const char* key) {
    const json* found = members.member(key);
    if (found != nullptr && !found->is_array())
      refuse(std::string("limits.") + key + ": needed: a list; found: " + found->dump());
    return found != nullptr ? *found : json::array();
  };
  for (const json& name : list("missing")) {
    if (!name.is_string()) refuse("limits.missing: needed: names of operators");
    limits.missing.push_back(name.get<std::string>());
  }
  for (const json& fault : list("faults")) limits.faults.push_back(fault_from_json(fault));
  members.refuse_others();
  return limits;
}

SimulatedDevice& simulated_device() {
  static std::mutex mutex;
  std::lock_guard lock(mutex);
  if (SimulatedDevice* device = the_device()) return *device;
  const char* environment = std::getenv("LENSCPP_SIMULATED");
  SimulatedLimits limits;
  if (environment != nullptr) {
    json object = json::parse(environment, nullptr, /*allow_exceptions=*/false);
    if (object.is_discarded()) refuse("LENSCPP_SIMULATED is not JSON: " + in_quotes(environment));
    limits = simulated_limits_from_json(object);
  }
  SimulatedDevice* device = load().device;
  device->set_limits(limits);
  the_device() = device;
  return *device;
}

bool simulated_device_loaded() { return the_device() != nullptr; }

}  // namespace lenscpp
