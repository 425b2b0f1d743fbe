// tokenizer.json, section by section; each section has a file of its own.
#include "hooks/tokenizer/tokenizer_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;

AddedToken read_added_token(const json& value, const std::string& where) {
  StrictObject object(value, where);
  AddedToken token{.id = read_id(object.required("id"), where),
                   .content = object.required_string("content"),
                   .single_word = object.required_bool("single_word"),
                   .lstrip = object.required_bool("lstrip"),
                   .rstrip = object.required_bool("rstrip"),
                   .normalized = object.required_bool("normalized"),
                   .special = object.required_bool("special")};
  object.finish();
  if (token.content.empty()) refuse(where, "\"content\" is empty");
  return token;
}

// `tokenizers` ignores the ids in the file and numbers the tokens itself: the model's id, else the
// next one free. A file that says otherwise would mean one thing there and another here.
class AddedTokenNumbers {
 public:
  explicit AddedTokenNumbers(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {
    for (const auto& [spelling, id] : vocabulary) taken_.insert(id);
  }

  void check(const AddedToken& token, const std::string& where) {
    const auto size = static_cast<TokenId>(vocabulary_.size());
    const auto known = vocabulary_.find(token.content);
    const TokenId next = highest_ && *highest_ >= size ? *highest_ + 1 : size;
    const TokenId expected = known == vocabulary_.end() ? next : known->second;
    if (token.id != expected)
      refuse(where, fmt::format("{} has id {}; allowed: {}, which `tokenizers` gives it",
                                in_quotes(token.content), token.id, expected));
    if (known == vocabulary_.end() && !taken_.insert(token.id).second)
      refuse(where, fmt::format("id {} of {} is that of another token", token.id,
                                in_quotes(token.content)));
    highest_ = std::max(highest_.value_or(0), token.id);
  }

 private:
  const Vocabulary& vocabulary_;
  std::unordered_set<TokenId> taken_;
  std::optional<TokenId> highest_;
};

std::vector<AddedToken> read_added_tokens(const json& value, const std::string& where,
                                          const Vocabulary& vocabulary) {
  if (!value.is_array()) refuse(where, fmt::format("found {}; allowed: an array", describe(value)));
  std::vector<AddedToken> tokens;
  AddedTokenNumbers numbers(vocabulary);
  std::unordered_set<std::string> contents;
  for (const json& item : value) {
    const std::string here = fmt::format("{}: {}", where, tokens.size());
    tokens.push_back(read_added_token(item, here));
    numbers.check(tokens.back(), here);
    if (!contents.insert(tokens.back().content).second)
      refuse(here, fmt::format("{} is given twice", in_quotes(tokens.back().content)));
  }
  return tokens;
}

std::unordered_set<TokenId> ids_of(const TokenizerFile& file) {
  std::unordered_set<TokenId> ids;
  for (const auto& [spelling, id] : file.vocabulary) ids.insert(id);
  for (const AddedToken& token : file.added_tokens) ids.insert(token.id);
  return ids;
}

// Truncation and padding are how the file was last used: `transformers` sets both anew for every
// call, and here a text is always whole.
void ignore_usage(StrictObject& object) {
  for (const std::string_view key : {"truncation", "padding"}) {
    const json* found = object.optional(key);
    if (found != nullptr && !found->is_object())
      refuse(fmt::format("{}: {}", object.where(), key),
             fmt::format("found {}; allowed: null, an object", describe(*found)));
  }
}

}  // namespace

TokenizerFile read_tokenizer_file(std::string_view text, const std::string& origin) {
  const json root = parse_json_object(text, origin);
  StrictObject object(root, origin);
  object.only("version", "1.0");
  ignore_usage(object);
  TokenizerFile file;
  if (const json* value = object.optional("normalizer"))
    file.normalizer = Normalizer::read(*value, origin + ": normalizer");
  if (const json* value = object.optional("pre_tokenizer"))
    file.pre_tokenizer = PreTokenizer::read(*value, origin + ": pre_tokenizer");
  ModelSection section = read_model(object.required("model"), origin + ": model",
                                    file.pre_tokenizer.ends_in_byte_level());
  file.vocabulary = std::move(section.vocabulary);
  file.model = std::move(section.model);
  if (takes_raw_bytes(file.model)) file.pre_tokenizer.leave_bytes_raw();
  if (const json* value = object.optional("added_tokens"))
    file.added_tokens = read_added_tokens(*value, origin + ": added_tokens", file.vocabulary);
  if (const json* value = object.optional("post_processor"))
    file.post_processor = PostProcessor::read(*value, origin + ": post_processor", ids_of(file));
  if (const json* value = object.optional("decoder"))
    file.decoder = Decoder::read(*value, origin + ": decoder");
  object.finish();
  return file;
}

}  // namespace lenscpp::tokenizing
