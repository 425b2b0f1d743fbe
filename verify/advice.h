// What to do about a run that was refused, where the shape of its first failure says it.
#pragma once

#include <string>

#include "hooks/run_record.h"
#include "verify/reference/exact.h"

namespace lenscpp {

/// A clause for the verdict's summary; empty where nothing is known but to try another device.
std::string advice_for(const Point& first_failure, const RunRecord& record);

}  // namespace lenscpp
