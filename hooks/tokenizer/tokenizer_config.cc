// tokenizer_config.json: which tokens begin and end a text. Written by `transformers`, full of keys
// that concern Python classes; only what matters to tokens is read.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/tokenizer_file.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;
constexpr std::string_view kEndOfText = "<|endoftext|>";

std::optional<TokenId> id_of(const TokenizerFile& file, std::string_view content) {
  for (const AddedToken& token : file.added_tokens) {
    if (token.content == content) return token.id;
  }
  const auto found = file.vocabulary.find(std::string(content));
  if (found == file.vocabulary.end()) return std::nullopt;
  return found->second;
}

// A token is given as a string or as an object with "content".
std::optional<std::string> token_name(const json& config, const std::string& origin,
                                      const char* key) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return std::nullopt;
  const json& content =
      found->is_object() && found->contains("content") ? (*found)["content"] : *found;
  if (!content.is_string())
    refuse(origin, fmt::format("\"{}\" is {}; allowed: null, a string, an object with \"content\"",
                               key, describe(content)));
  return content.get<std::string>();
}

std::optional<TokenId> named_token(const json& config, const std::string& origin, const char* key,
                                   const TokenizerFile& file, std::optional<TokenId> absent) {
  if (!config.contains(key)) return absent;
  const auto name = token_name(config, origin, key);
  if (!name) return std::nullopt;
  const auto id = id_of(file, *name);
  if (!id)
    refuse(origin,
           fmt::format("\"{}\" is {}, which is no token of tokenizer.json", key, in_quotes(*name)));
  return id;
}

// Padding is filled with it and read by nobody: one that is no token is none.
std::optional<TokenId> pad_token(const json& config, const std::string& origin,
                                 const TokenizerFile& file) {
  const auto name = token_name(config, origin, "pad_token");
  return name ? id_of(file, *name) : std::nullopt;
}

// `transformers` adds these tokens to the tokenizer and overrides add_prefix_space.
void check_agreement(const json& config, const std::string& origin, const TokenizerFile& file) {
  const auto prefix = config.find("add_prefix_space");
  const std::optional<bool> in_file = file.pre_tokenizer.add_prefix_space();
  if (in_file && prefix != config.end() && prefix->is_boolean() && prefix->get<bool>() != *in_file)
    refuse(origin,
           fmt::format("\"add_prefix_space\" is {}, in tokenizer.json it is {}; allowed: the same",
                       describe(*prefix), *in_file));
  const auto added = config.find("added_tokens_decoder");
  if (added == config.end() || !added->is_object()) return;
  for (const auto& [id, token] : added->items()) {
    if (!token.is_object() || !token.contains("content") || !token["content"].is_string())
      refuse(origin, fmt::format("added_tokens_decoder {} has no \"content\"", in_quotes(id)));
    const auto& content = token["content"].get_ref<const std::string&>();
    const auto known = id_of(file, content);
    if (!known || std::to_string(*known) != id)
      refuse(origin, fmt::format("added_tokens_decoder says {} has id {}; tokenizer.json does not",
                                 in_quotes(content), in_quotes(id)));
  }
}

}  // namespace

SpecialTokens read_tokenizer_config(std::string_view text, const std::string& origin,
                                    const TokenizerFile& file) {
  const json config = parse_json_object(text, origin);
  check_agreement(config, origin, file);
  const auto end_of_text = id_of(file, kEndOfText);
  return {named_token(config, origin, "bos_token", file, end_of_text),
          named_token(config, origin, "eos_token", file, end_of_text),
          pad_token(config, origin, file)};
}

SpecialTokens default_special_tokens(const TokenizerFile& file) {
  const auto end_of_text = id_of(file, kEndOfText);
  return {end_of_text, end_of_text, std::nullopt};
}

}  // namespace lenscpp::tokenizing
