// A NaN or an infinity among the weights makes every run INVALID, far from its cause: it is refused
// here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "hooks/array.h"

namespace lenscpp {

/// Index of the first NaN or infinity. Reads at the speed of memory.
std::optional<std::int64_t> first_not_finite(const Array& array);

/// Throws std::invalid_argument: `where`, the index and the value; `hint` ends the message.
void require_finite(const Array& array, const std::string& where, const std::string& hint);

}  // namespace lenscpp
