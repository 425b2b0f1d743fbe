// tokenizer.json, section by section. Defaults and required keys are those of `tokenizers` 0.23.
#include "hooks/tokenizer/tokenizer_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;
using Vocabulary = std::unordered_map<std::string, TokenId>;

[[noreturn]] void refuse_type(const std::string& where, const std::string& type,
                              std::string_view allowed) {
  refuse(where, fmt::format("type {} is not supported; allowed: {}", in_quotes(type), allowed));
}

TokenId read_id(const json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kTokenIdLimit)
    refuse(where, fmt::format("id is {}; allowed: 0..{}", describe(value), kTokenIdLimit - 1));
  return value.get<TokenId>();
}

Vocabulary read_vocabulary(const json& value, const std::string& where) {
  if (!value.is_object() || value.empty())
    refuse(where,
           fmt::format("found {}; allowed: an object with at least one token", describe(value)));
  Vocabulary vocabulary;
  std::unordered_map<TokenId, std::string_view> by_id;
  for (const auto& [spelling, id_value] : value.items()) {
    if (spelling.empty()) refuse(where, "a token is the empty string");
    const TokenId id = read_id(id_value, fmt::format("{}: token {}", where, in_quotes(spelling)));
    const auto known = vocabulary.emplace(spelling, id).first;
    const auto [other, is_new] = by_id.emplace(id, known->first);
    if (!is_new)
      refuse(where, fmt::format("id {} is given to {} and to {}", id, in_quotes(other->second),
                                in_quotes(spelling)));
  }
  return vocabulary;
}

// A merge is written "a b", or ["a", "b"] since `tokenizers` 0.20.
std::pair<std::string, std::string> merge_parts(const json& value, const std::string& where) {
  if (value.is_array() && value.size() == 2 && value[0].is_string() && value[1].is_string())
    return {value[0].get<std::string>(), value[1].get<std::string>()};
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos)
      return {text.substr(0, space), text.substr(space + 1)};
  }
  refuse(where, fmt::format("found {}; allowed: \"left right\" or [\"left\", \"right\"]",
                            describe(value)));
}

std::vector<Merge> read_merges(const json& value, const std::string& where,
                               const Vocabulary& vocabulary) {
  if (!value.is_array()) refuse(where, fmt::format("found {}; allowed: an array", describe(value)));
  std::vector<Merge> merges;
  merges.reserve(value.size());
  for (const json& item : value) {
    const std::string here = fmt::format("{}: merge {}", where, merges.size());
    const auto [left, right] = merge_parts(item, here);
    const auto id_of = [&](const std::string& spelling) {
      const auto found = vocabulary.find(spelling);
      if (found == vocabulary.end())
        refuse(here, fmt::format("{} is not in the vocabulary", in_quotes(spelling)));
      return found->second;
    };
    merges.push_back({id_of(left), id_of(right), id_of(left + right)});
  }
  return merges;
}

std::array<std::optional<TokenId>, 256> byte_tokens_of(const Vocabulary& vocabulary) {
  std::array<std::optional<TokenId>, 256> tokens;
  for (std::size_t byte = 0; byte < tokens.size(); ++byte) {
    const auto found = vocabulary.find(byte_alphabet::character(static_cast<std::uint8_t>(byte)));
    if (found != vocabulary.end()) tokens[byte] = found->second;
  }
  return tokens;
}

std::unordered_map<std::string, TokenId> whole_words_of(const Vocabulary& vocabulary) {
  std::unordered_map<std::string, TokenId> words;
  for (const auto& [spelling, id] : vocabulary) {
    std::string bytes = byte_alphabet::unspell(spelling);
    // Only what can be spelled is ever looked up: the rest stands for no bytes.
    if (byte_alphabet::spell(bytes) == spelling) words.emplace(std::move(bytes), id);
  }
  return words;
}

// An unknown token is never produced when every byte has its own.
void check_unknown_token(StrictObject& model,
                         const std::array<std::optional<TokenId>, 256>& byte_tokens) {
  const json* unknown = model.optional("unk_token");
  model.bool_or("fuse_unk", false);
  if (unknown == nullptr) return;
  const auto missing = std::find(byte_tokens.begin(), byte_tokens.end(), std::nullopt);
  if (!unknown->is_string() || missing != byte_tokens.end())
    refuse(model.where(),
           fmt::format("\"unk_token\" is {}, but not every byte has a token; allowed: "
                       "null, or a vocabulary with all 256 bytes",
                       describe(*unknown)));
}

void read_model(const json& value, const std::string& where, TokenizerFile& file) {
  StrictObject model(value, where);
  if (const json* type = model.optional("type"); type != nullptr && *type != "BPE")
    refuse(where,
           fmt::format("type is {}, which is not supported; allowed: \"BPE\"", describe(*type)));
  model.only("dropout", 0.0);
  model.only("continuing_subword_prefix", "");
  model.only("end_of_word_suffix", "");
  model.only("byte_fallback", false);
  const bool ignore_merges = model.bool_or("ignore_merges", false);
  file.vocabulary = read_vocabulary(model.required("vocab"), where + ": vocab");
  const std::string merges_where = where + ": merges";
  const auto merges = read_merges(model.required("merges"), merges_where, file.vocabulary);
  file.model.merges = MergeTable(merges, merges_where);
  file.model.byte_tokens = byte_tokens_of(file.vocabulary);
  if (ignore_merges) file.model.whole_words = whole_words_of(file.vocabulary);
  check_unknown_token(model, file.model.byte_tokens);
  model.finish();
}

SplitBehavior read_behavior(StrictObject& split) {
  struct Named {
    std::string_view name;
    SplitBehavior behavior;
  };
  constexpr std::array kBehaviors = {
      Named{"Removed", SplitBehavior::removed}, Named{"Isolated", SplitBehavior::isolated},
      Named{"MergedWithPrevious", SplitBehavior::merged_with_previous},
      Named{"MergedWithNext", SplitBehavior::merged_with_next},
      Named{"Contiguous", SplitBehavior::contiguous}};
  const std::string& name = split.required_string("behavior");
  for (const Named& named : kBehaviors) {
    if (named.name == name) return named.behavior;
  }
  refuse(split.where(), fmt::format("behavior {} is not supported; allowed: Removed, Isolated, "
                                    "MergedWithPrevious, MergedWithNext, Contiguous",
                                    in_quotes(name)));
}

SplitPattern read_pattern(StrictObject& split) {
  StrictObject pattern(split.required("pattern"), split.where() + ": pattern");
  const bool is_regex = pattern.optional("Regex") != nullptr;
  const bool is_string = pattern.optional("String") != nullptr;
  pattern.finish();
  if (is_regex == is_string)
    refuse(pattern.where(), "allowed: one of {\"Regex\": ...} and {\"String\": ...}");
  const std::string& text = pattern.required_string(is_regex ? "Regex" : "String");
  return is_regex ? SplitPattern::from_regex(text, pattern.where())
                  : SplitPattern::from_literal(text, pattern.where());
}

// Reads the pre-tokenizers of one kind after another. ByteLevel must come last: what follows it
// would see the byte alphabet instead of text.
class PreTokenizerReader {
 public:
  PreTokenizer read(const json& value, const std::string& where) {
    add(value, where);
    if (!has_byte_level_) refuse(where, "no ByteLevel pre-tokenizer; allowed: byte-level BPE only");
    return std::move(result_);
  }

 private:
  void add(const json& value, const std::string& where) {
    StrictObject part(value, where);
    const std::string& type = part.required_string("type");
    if (has_byte_level_) refuse(where, fmt::format("{} after ByteLevel", in_quotes(type)));
    if (type == "ByteLevel") {
      add_byte_level(part);
    } else if (type == "Sequence") {
      add_sequence(part);
    } else if (type == "Split") {
      SplitStep step{read_pattern(part), read_behavior(part), part.required_bool("invert")};
      result_.splits.push_back(std::move(step));
    } else if (type == "Digits") {
      const bool individual = part.required_bool("individual_digits");
      result_.splits.push_back({SplitPattern::one_digit(),
                                individual ? SplitBehavior::isolated : SplitBehavior::contiguous});
    } else {
      refuse_type(where, type, "ByteLevel, Sequence, Split, Digits");
    }
    part.finish();
  }

  void add_byte_level(StrictObject& part) {
    has_byte_level_ = true;
    result_.add_prefix_space = part.required_bool("add_prefix_space");
    part.bool_or("trim_offsets", true);  // offsets are not computed here
    if (part.bool_or("use_regex", true))
      result_.last_split = SplitPattern::from_regex(kGpt2Pattern, part.where());
  }

  void add_sequence(StrictObject& part) {
    const json& parts = part.required("pretokenizers");
    if (!parts.is_array())
      refuse(part.where(),
             fmt::format("\"pretokenizers\" is {}; allowed: an array", describe(parts)));
    for (std::size_t i = 0; i < parts.size(); ++i)
      add(parts[i], fmt::format("{}: pretokenizers {}", part.where(), i));
  }

  PreTokenizer result_;
  bool has_byte_level_ = false;
};

// No special tokens are added by encode(), and offsets are not computed, so what a post-processor
// says cannot matter; its kind is checked because others might change tokens.
void check_post_processor(const json& value, const std::string& where) {
  StrictObject part(value, where);
  const std::string& type = part.required_string("type");
  if (type == "Sequence") {
    const json& parts = part.required("processors");
    if (!parts.is_array())
      refuse(where, fmt::format("\"processors\" is {}; allowed: an array", describe(parts)));
    for (const json& inner : parts) check_post_processor(inner, where);
  } else if (type != "ByteLevel" && type != "TemplateProcessing") {
    refuse_type(where, type, "ByteLevel, TemplateProcessing, Sequence");
  }
}

void check_decoder(const json& value, const std::string& where) {
  StrictObject decoder(value, where);
  const std::string& type = decoder.required_string("type");
  if (type != "ByteLevel") refuse_type(where, type, "ByteLevel");
  for (const std::string_view key : {"add_prefix_space", "trim_offsets", "use_regex"})
    decoder.bool_or(key, true);  // the decoder of `tokenizers` reads none of them
  decoder.finish();
}

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

void refuse_unless_null(StrictObject& object, std::string_view key) {
  const json* found = object.optional(key);
  if (found == nullptr) return;
  const bool typed = found->is_object() && found->contains("type");
  refuse(fmt::format("{}: {}", object.where(), key),
         fmt::format("{}{} is not supported; allowed: null", typed ? "type " : "",
                     describe(typed ? (*found)["type"] : *found)));
}

}  // namespace

TokenizerFile read_tokenizer_file(std::string_view text, const std::string& origin) {
  const json root = parse_json_object(text, origin);
  StrictObject object(root, origin);
  object.only("version", "1.0");
  for (const std::string_view key : {"truncation", "padding", "normalizer"})
    refuse_unless_null(object, key);
  TokenizerFile file;
  read_model(object.required("model"), origin + ": model", file);
  file.pre_tokenizer =
      PreTokenizerReader().read(object.required("pre_tokenizer"), origin + ": pre_tokenizer");
  check_decoder(object.required("decoder"), origin + ": decoder");
  if (const json* post = object.optional("post_processor"))
    check_post_processor(*post, origin + ": post_processor");
  if (const json* added = object.optional("added_tokens"))
    file.added_tokens = read_added_tokens(*added, origin + ": added_tokens", file.vocabulary);
  object.finish();
  return file;
}

}  // namespace lenscpp::tokenizing
