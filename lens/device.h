// Devices by name: the one place where one is opened, and what is said, once, to whoever asks for
// one that is known to lie.
#pragma once

#include <c10/core/Device.h>

#include <optional>
#include <string>

namespace lenscpp {

/// "simulated", "simulated:0".
bool is_simulated(const std::string& name);
/// The device of that name ("cpu", "cuda:1"); the simulated one is loaded. Warns on standard error
/// where device_warning_once says so. Throws DeviceError for a name that is no device; one that is
/// missing says so when it is first used.
c10::Device named_device(const std::string& name);

/// The device of that name, without a warning: for asking about one that is not used. Throws the
/// same.
c10::Device parsed_device(const std::string& name);

/// The text the first time in this process that `device` is Apple's ("mps", "mps:0") and
/// LENSCPP_ALLOW_MPS is not 1; nothing otherwise. The caller says it, on standard error or as its
/// language warns. It silences nothing else: runs are verified all the same.
std::optional<std::string> device_warning_once(const std::string& device);

}  // namespace lenscpp
