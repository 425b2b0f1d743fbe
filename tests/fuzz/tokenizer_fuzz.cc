// Fuzz target of hooks/tokenizer. An input that starts with { is a tokenizer.json (and a
// tokenizer_config.json); any other is text. Only std::invalid_argument may leave the tokenizer.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string_view>

#include "hooks/tokenizer/tokenizer.h"
#include "hooks/tokenizer/utf8.h"
#include "tests/hooks/tokenizer/small_tokenizer.h"

namespace {

using lenscpp::Tokenizer;

constexpr std::string_view kText = "the Ab 12's\n\n <m> \u00e9\U0001f600<|endoftext|>  x";

const Tokenizer& small() {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(lenscpp::testing::small_tokenizer().dump(), "small");
  return tokenizer;
}

void use(const Tokenizer& tokenizer) {
  const auto ids = tokenizer.encode(kText);
  for (const std::int64_t id : ids) {
    if (!tokenizer.contains(id) || id >= tokenizer.id_limit()) std::abort();
  }
  if (lenscpp::utf8::first_invalid(tokenizer.decode(ids))) std::abort();
  const auto pair = tokenizer.encode_with_special(kText, kText);
  if (pair.ids.size() != pair.type_ids.size() || pair.ids.size() < 2 * ids.size()) std::abort();
}

void read_file(std::string_view bytes) {
  try {
    use(Tokenizer::from_json(bytes, "fuzz"));
  } catch (const std::invalid_argument&) {
  }
}

void read_config(std::string_view bytes) {
  static const std::string file = lenscpp::testing::small_tokenizer().dump();
  try {
    Tokenizer::from_json(file, "small", bytes);
  } catch (const std::invalid_argument&) {
  }
}

void read_text(std::string_view bytes) {
  const bool valid = !lenscpp::utf8::first_invalid(bytes);
  try {
    const auto ids = small().encode(bytes);
    if (!valid || small().decode(ids) != bytes) std::abort();
  } catch (const std::invalid_argument&) {
    if (valid) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (bytes.starts_with('{')) {
    read_file(bytes);
    if (size < 2000) read_config(bytes);
  } else {
    read_text(bytes);
  }
  return 0;
}
