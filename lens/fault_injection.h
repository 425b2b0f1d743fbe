// Faults in a run of the device pass: RunOptions.interference made from the torch-free table.
#pragma once

#include <memory>

#include "hooks/transformer/tap.h"
#include "verify/device/faults.h"

namespace lenscpp {

/// What changes a run's tensors as `injector` says, on whatever device they are; those that it
/// leaves alone are handed on as they are. The injector's log tells afterwards what fired.
Interference interference_of(std::shared_ptr<FaultInjector> injector);

}  // namespace lenscpp
