// A small tokenizer.json to start from: all 256 bytes (ids 0..255), "th", "the", "Ġthe",
// <|endoftext|>.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "hooks/tokenizer/byte_alphabet.h"

namespace lenscpp::testing {

inline nlohmann::json small_tokenizer() {
  auto file = nlohmann::json::parse(R"({"version": "1.0", "truncation": null, "padding": null,
      "added_tokens": [{"id": 259, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": true}],
      "normalizer": null,
      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                        "use_regex": true},
      "post_processor": null,
      "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                  "use_regex": true},
      "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": false, "vocab": {"th": 256, "the": 257, "Ġthe": 258},
                "merges": ["t h", "th e", ["Ġ", "the"]]}})");
  for (int byte = 0; byte < 256; ++byte)
    file["model"]["vocab"][byte_alphabet::character(static_cast<std::uint8_t>(byte))] = byte;
  return file;
}

inline nlohmann::json added_token(int id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", false}};
}

}  // namespace lenscpp::testing
