// Names of devices, and the one warning about Apple's.
#include "lens/device.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "verify/device/simulated.h"
#include "verify/verified_cache.h"

namespace lenscpp {
namespace {

constexpr const char* kMps =
    "[device] mps has computed wrong activations without an error or a NaN: GPT-2 small's "
    "indirect-object prompt lost its answer, logit difference +3.36 on the CPU, -0.99 on mps "
    "(TransformerLens 1178); known causes are strides of weights that were ignored (pytorch "
    "161640), long sums that read past their operands (pytorch 195163), keys beyond the last read "
    "as well (pytorch PR 169222). Every run here is verified, and refused where it is wrong, "
    "unless verification is off. How to check this machine: lenscpp doctor --device mps. "
    "LENSCPP_ALLOW_MPS=1 silences this warning, never the verification.";

}  // namespace

bool is_simulated(const std::string& name) {
  return name == "simulated" || name.starts_with("simulated:");
}

c10::Device named_device(const std::string& name) {
  if (auto warning = device_warning_once(name)) std::fprintf(stderr, "%s\n", warning->c_str());
  return parsed_device(name);
}

c10::Device parsed_device(const std::string& name) {
  if (is_simulated(name)) simulated_device();
  try {
    c10::Device device(name);
    if (device.is_meta())
      throw DeviceError("[device] \"meta\" holds no numbers, so that nothing can be run there");
    return device;
  } catch (const c10::Error& e) {
    throw DeviceError("[device] \"" + name + "\" is not a device: " + e.what_without_backtrace());
  }
}

std::optional<std::string> device_warning_once(const std::string& device) {
  static std::atomic<bool> said = false;
  const char* allowed = std::getenv("LENSCPP_ALLOW_MPS");
  if (device.substr(0, device.find(':')) != "mps") return {};
  if (allowed != nullptr && std::string_view(allowed) == "1") return {};
  if (said.exchange(true)) return {};
  return kMps;
}

}  // namespace lenscpp
