// What is said, once, to whoever asks for a device that is known to lie.
#pragma once

#include <optional>
#include <string>

namespace lenscpp {

/// The text the first time in this process that `device` is Apple's ("mps", "mps:0") and
/// LENSCPP_ALLOW_MPS is not 1; nothing otherwise. The caller says it, on standard error or as its
/// language warns. It silences nothing else: runs are verified all the same.
std::optional<std::string> device_warning_once(const std::string& device);

}  // namespace lenscpp
