// The phases of the check-up, each of which runs in a process of its own.
#pragma once

#include <string>

#include "patching/command/common.h"
#include "verify/device/doctor.h"

namespace lenscpp::command {

/// Runs one phase here and now. What it throws is a failure with its message; a device that aborts
/// or hangs takes the process with it. Steps are written to standard error, a line each. Throws
/// std::invalid_argument for an unknown phase.
PhaseResult run_phase(const std::string& name, const CommonOptions& options);

}  // namespace lenscpp::command
