// This very program as a child process, with a time limit: what aborts or hangs there ends nothing
// here.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "verify/device/doctor.h"

namespace lenscpp::command {

/// What a child wrote, and how it ended.
struct ChildResult {
  std::string output;  // standard output, whole
  ProcessEnd end;
};

/// Runs this program with `arguments` and waits; kills it after `limit_seconds`, and returns five
/// seconds later at the latest, should it be beyond killing. `on_line` is called with every line of
/// its standard error; what that throws ends the child. Throws std::system_error when it cannot be
/// started.
ChildResult run_child(const std::vector<std::string>& arguments, double limit_seconds,
                      const std::function<void(const std::string&)>& on_line = {});

}  // namespace lenscpp::command
