// What a text becomes when special tokens are put around it.
#pragma once

#include <cstdint>
#include <vector>

namespace lenscpp {

/// Tokens and, for models that tell two texts apart, which of them each belongs to.
struct SpecialEncoding {
  std::vector<std::int64_t> ids;
  std::vector<std::int64_t> type_ids;  ///< as long as `ids`
};

}  // namespace lenscpp
