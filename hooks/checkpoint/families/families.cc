// The table of families.
#include <array>
#include <stdexcept>

#include "hooks/checkpoint/families/family.h"
#include "hooks/checkpoint/families/gpt2.h"
#include "hooks/nearest.h"

namespace lenscpp {

std::span<const Family> families() {
  static const std::array<Family, 1> kFamilies{{
      {"gpt2", gpt2_config, gpt2_weights},
  }};
  return kFamilies;
}

const Family& family(std::string_view model_type, const std::string& origin) {
  std::string allowed;
  for (const Family& candidate : families()) {
    if (candidate.model_type == model_type) return candidate;
    allowed += (allowed.empty() ? "" : ", ") + in_quotes(candidate.model_type);
  }
  throw std::invalid_argument("[config] " + origin + ": model_type " + in_quotes(model_type) +
                              " is not known; allowed: " + allowed);
}

}  // namespace lenscpp
