// Any bytes are a config.json of a known family, or a documented exception says why not.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include <nlohmann/json.hpp>

#include "hooks/checkpoint/config.h"
#include "hooks/checkpoint/json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    std::string_view text(reinterpret_cast<const char*>(data), size);
    lenscpp::Config config = lenscpp::parse_config(lenscpp::parse_json(text, "fuzz"), "fuzz");
    if (config.d_head * config.n_heads != config.d_model || !(config.attn_divisor(0) > 0))
      __builtin_trap();
    (void)lenscpp::to_json(config).dump();
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
