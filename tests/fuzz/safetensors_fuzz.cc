// Any bytes are a safetensors file, or a documented exception says why not; what is read can be
// read whole.
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

#include "hooks/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    auto file = lenscpp::parse_safetensors(std::as_bytes(std::span(data, size)), "fuzz");
    for (const std::string& name : file.names()) try {
        (void)file.tensor(name).digest();       // reads every byte
      } catch (const std::invalid_argument&) {  // a type that is carried, not read
      }
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
