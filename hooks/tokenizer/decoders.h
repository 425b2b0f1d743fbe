// The section "decoder" of a tokenizer.json: how the spellings of tokens become text.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "hooks/tokenizer/split_pattern.h"

namespace lenscpp::tokenizing {

namespace decoding {

struct ByteLevel {};
struct ByteFallback {};
struct Fuse {};
struct WordPiece {
  std::string prefix;
  bool cleanup = false;
};
struct Metaspace {
  std::string replacement;
  bool drops_first = false;  ///< of the first token, since encoding put it there
};
struct Strip {
  std::string content;  ///< one character
  std::size_t start = 0;
  std::size_t stop = 0;
};
struct Replace {
  SplitPattern pattern;
  std::string content;
};
struct Bpe {
  std::string suffix;
};
using Step = std::variant<ByteLevel, ByteFallback, Fuse, WordPiece, Metaspace, Strip, Replace, Bpe>;

}  // namespace decoding

/// The steps of a decoder, in order.
class Decoder {
 public:
  /// Without a decoder: spellings with spaces between them.
  Decoder() = default;
  /// Reads a decoder; `where` is its place in the file. Throws std::invalid_argument for a kind or
  /// a field that is not supported, naming it and what is allowed.
  static Decoder read(const nlohmann::json& value, const std::string& where);

  /// Whether the text is that of each token alone, joined, with broken UTF-8 replaced at the end.
  bool is_byte_level() const;
  /// The text of tokens, valid UTF-8. Throws std::invalid_argument when a Replace makes it more
  /// than 32 times longer.
  std::string decode(std::vector<std::string> spellings) const;

 private:
  void add(const nlohmann::json& value, const std::string& where);
  std::vector<decoding::Step> steps_;
  bool exists_ = false;
};

}  // namespace lenscpp::tokenizing
