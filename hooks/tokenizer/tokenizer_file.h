// What tokenizer.json says, checked: everything in it is understood here or refused.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/added_tokens.h"
#include "hooks/tokenizer/decoders.h"
#include "hooks/tokenizer/models.h"
#include "hooks/tokenizer/normalizers.h"
#include "hooks/tokenizer/post_processors.h"
#include "hooks/tokenizer/pre_tokenizers.h"

namespace lenscpp::tokenizing {

/// The parts of a tokenizer.json.
struct TokenizerFile {
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Vocabulary vocabulary;  ///< spelling -> id, without added tokens
  Model model;
  std::vector<AddedToken> added_tokens;
  PostProcessor post_processor;
  Decoder decoder;
};

/// Reads a tokenizer.json; `origin` names it in messages. Throws std::invalid_argument for
/// malformed JSON and for every component, key or entry that is not supported, naming it and what
/// is allowed.
TokenizerFile read_tokenizer_file(std::string_view json, const std::string& origin);

/// The tokens named by a tokenizer_config.json, or by default <|endoftext|>.
struct SpecialTokens {
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
  std::optional<TokenId> pad = {};  // by tokenizer_config.json alone
};

/// Reads bos_token and eos_token. Of the rest, what would make `transformers` tokenize otherwise
/// than `file` says is refused (add_prefix_space, added_tokens_decoder). Throws
/// std::invalid_argument.
SpecialTokens read_tokenizer_config(std::string_view json, const std::string& origin,
                                    const TokenizerFile& file);
/// Without a tokenizer_config.json: both are <|endoftext|> if there is such a token.
SpecialTokens default_special_tokens(const TokenizerFile& file);

}  // namespace lenscpp::tokenizing
