// Text to tokens and back: BPE, WordPiece and Unigram from Hugging Face's tokenizer.json, token for
// token what the Python package `tokenizers` gives. Not here: padding, truncation, offsets.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/special_encoding.h"

namespace lenscpp {

/// A tokenizer. Immutable; copies share their tables; safe to use from many threads.
class Tokenizer {
 public:
  /// Reads a tokenizer.json and, when it lies in the same folder, tokenizer_config.json (bos, eos).
  /// Throws std::invalid_argument for what cannot be read, is malformed, or is not supported.
  static Tokenizer from_file(const std::filesystem::path& path);
  /// Reads the contents of a tokenizer.json; `origin` names it in messages. `config_json` are the
  /// contents of a tokenizer_config.json. Throws as from_file does.
  static Tokenizer from_json(std::string_view json, std::string_view origin,
                             std::optional<std::string_view> config_json = std::nullopt);

  /// The tokens of a text, special tokens written in it included, none added
  /// (add_special_tokens=False). Throws std::invalid_argument when the text is not UTF-8 (naming
  /// the byte) or longer than 2^31 - 1 bytes, and for what has no token, which `tokenizers` would
  /// drop.
  std::vector<std::int64_t> encode(std::string_view utf8) const;
  /// The same with the special tokens that the file's post-processor puts around a text ("[CLS]",
  /// "<s>"), add_special_tokens=True, and with type ids. Throws as encode does.
  SpecialEncoding encode_with_special(std::string_view utf8) const;
  /// Of two texts that belong together.
  SpecialEncoding encode_with_special(std::string_view first, std::string_view second) const;

  /// The text of tokens by the file's decoder, invalid UTF-8 replaced by U+FFFD; with
  /// `skip_special` without special tokens. Throws std::invalid_argument for an id that no token
  /// has.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special = false) const;
  /// The text of one token alone: decode({id}).
  std::string token(std::int64_t id) const;

  /// The token that the vocabulary spells so ("Ġthe", "<|endoftext|>"), or nothing.
  std::optional<std::int64_t> id(std::string_view spelling) const;
  /// How the vocabulary spells a token: "Ġthe". Throws std::invalid_argument for an id that no
  /// token has.
  const std::string& spelling(std::int64_t id) const;
  bool contains(std::int64_t id) const;
  /// Whether decode(..., true) leaves it out. False for an id that no token has.
  bool is_special(std::int64_t id) const;

  /// Number of tokens, added ones included.
  std::int64_t vocab_size() const;
  /// One more than the highest id: above vocab_size() when ids have gaps.
  std::int64_t id_limit() const;

  /// From tokenizer_config.json, else <|endoftext|> when there is such a token.
  std::optional<std::int64_t> bos_token_id() const;
  std::optional<std::int64_t> eos_token_id() const;
  /// From tokenizer_config.json alone.
  std::optional<std::int64_t> pad_token_id() const;

  /// XXH3-128 of the bytes of tokenizer.json, as 32 hexadecimal digits.
  const std::string& source_bytes_hash() const;

 private:
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables);
  std::shared_ptr<const Tables> tables_;
};

}  // namespace lenscpp
