// What tokenizer.json says, checked: everything in it is understood here or refused.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hooks/tokenizer/added_tokens.h"
#include "hooks/tokenizer/bpe.h"
#include "hooks/tokenizer/split_pattern.h"

namespace lenscpp::tokenizing {

/// One Split or Digits pre-tokenizer.
struct SplitStep {
  SplitPattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;
};

/// The steps before merging, in the order in which they are applied to a piece of text.
struct PreTokenizer {
  std::vector<SplitStep> splits;
  bool add_prefix_space = false;           ///< of ByteLevel: every part starts with a space
  std::optional<SplitPattern> last_split;  ///< of ByteLevel: GPT-2's pattern when use_regex
};

/// The parts of a tokenizer.json.
struct TokenizerFile {
  std::unordered_map<std::string, TokenId> vocabulary;  ///< spelling -> id, without added tokens
  BpeModel model;
  std::vector<AddedToken> added_tokens;
  PreTokenizer pre_tokenizer;
};

/// Reads a tokenizer.json; `origin` names it in messages. Throws std::invalid_argument for
/// malformed JSON and for every component, key or entry that is not supported, naming it and what
/// is allowed.
TokenizerFile read_tokenizer_file(std::string_view json, const std::string& origin);

/// The tokens named by a tokenizer_config.json, or by default <|endoftext|>.
struct SpecialTokens {
  std::optional<TokenId> bos;
  std::optional<TokenId> eos;
};

/// Reads bos_token and eos_token. Of the rest, what would make `transformers` tokenize otherwise
/// than `file` says is refused (add_prefix_space, added_tokens_decoder). Throws
/// std::invalid_argument.
SpecialTokens read_tokenizer_config(std::string_view json, const std::string& origin,
                                    const TokenizerFile& file);
/// Without a tokenizer_config.json: both are <|endoftext|> if there is such a token.
SpecialTokens default_special_tokens(const TokenizerFile& file);

}  // namespace lenscpp::tokenizing
