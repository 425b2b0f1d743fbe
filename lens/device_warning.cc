// The one warning about Apple's device.
#include "lens/device_warning.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

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

std::optional<std::string> device_warning_once(const std::string& device) {
  static std::atomic<bool> said = false;
  const char* allowed = std::getenv("LENSCPP_ALLOW_MPS");
  if (device.substr(0, device.find(':')) != "mps") return {};
  if (allowed != nullptr && std::string_view(allowed) == "1") return {};
  if (said.exchange(true)) return {};
  return kMps;
}

}  // namespace lenscpp
