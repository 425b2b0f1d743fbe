// Each kind of model with the fields and defaults of `tokenizers` 0.23.
#include "hooks/tokenizer/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;

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

// `prefix` is left out of the right part where two are joined.
std::vector<Merge> read_merges(const json& value, const std::string& where,
                               const Vocabulary& vocabulary, const std::string& prefix) {
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
    if (!right.starts_with(prefix))
      refuse(here,
             fmt::format("{} does not start with \"continuing_subword_prefix\"", in_quotes(right)));
    merges.push_back({id_of(left), id_of(right), id_of(left + right.substr(prefix.size()))});
  }
  return merges;
}

Vocabulary whole_words_as_bytes(const Vocabulary& vocabulary) {
  Vocabulary words;
  for (const auto& [spelling, id] : vocabulary) {
    std::string bytes = byte_alphabet::unspell(spelling);
    // Only what can be spelled is ever looked up: the rest stands for no bytes.
    if (byte_alphabet::spell(bytes) == spelling) words.emplace(std::move(bytes), id);
  }
  return words;
}

std::string string_or_empty(StrictObject& object, std::string_view key) {
  return object.optional(key) == nullptr ? "" : object.required_string(key);
}

// The id of "unk_token", which must be a token. Nothing where there is none.
std::optional<TokenId> read_unknown(StrictObject& model, const Vocabulary& vocabulary) {
  if (model.optional("unk_token") == nullptr) return std::nullopt;
  const std::string& spelling = model.required_string("unk_token");
  const auto found = vocabulary.find(spelling);
  if (found == vocabulary.end())
    refuse(model.where(),
           fmt::format("\"unk_token\" is {}, which is not in the vocabulary", in_quotes(spelling)));
  return found->second;
}

// Fields that decide how the characters of a word become symbols.
void read_symbols(StrictObject& object, const Vocabulary& vocabulary, const std::string& prefix,
                  bool after_byte_level, BpeModel& model) {
  const std::string suffix = string_or_empty(object, "end_of_word_suffix");
  model.fuse_unknown = object.bool_or("fuse_unk", false);
  model.byte_fallback = object.bool_or("byte_fallback", false);
  if (model.byte_fallback && !(prefix + suffix).empty())
    refuse(object.where(), "\"byte_fallback\" is true beside a prefix or suffix; allowed: false");
  model.byte_tokens = alphabet_tokens_of(vocabulary);
  const auto& bytes = model.byte_tokens;
  const bool all_bytes = std::find(bytes.begin(), bytes.end(), std::nullopt) == bytes.end();
  model.raw_bytes = after_byte_level && (prefix + suffix).empty() && !model.byte_fallback &&
                    (all_bytes || object.optional("unk_token") == nullptr);
  if (model.raw_bytes) {  // an unknown token is never produced
    string_or_empty(object, "unk_token");
    return;
  }
  model.unknown = read_unknown(object, vocabulary);
  model.characters = CharacterTokens(vocabulary, prefix, suffix);
  model.fallback_tokens = fallback_tokens_of(vocabulary);
}

ModelSection read_bpe(StrictObject& object, bool after_byte_level) {
  object.only("dropout", 0.0);
  const std::string prefix = string_or_empty(object, "continuing_subword_prefix");
  const bool ignore_merges = object.bool_or("ignore_merges", false);
  Vocabulary vocabulary = read_vocabulary(object.required("vocab"), object.where() + ": vocab");
  const std::string where = object.where() + ": merges";
  BpeModel model;
  model.merges =
      MergeTable(read_merges(object.required("merges"), where, vocabulary, prefix), where);
  read_symbols(object, vocabulary, prefix, after_byte_level, model);
  if (ignore_merges)
    model.whole_words = model.raw_bytes ? whole_words_as_bytes(vocabulary) : vocabulary;
  return {std::move(vocabulary), std::move(model)};
}

ModelSection read_wordpiece(StrictObject& object) {
  Vocabulary vocabulary = read_vocabulary(object.required("vocab"), object.where() + ": vocab");
  object.required("unk_token");
  const TokenId unknown = *read_unknown(object, vocabulary);
  const json& limit = object.required("max_input_chars_per_word");
  if (!limit.is_number_unsigned())
    refuse(object.where(),
           fmt::format("\"max_input_chars_per_word\" is {}; allowed: 0, 1, ...", describe(limit)));
  WordPieceModel model(vocabulary, object.required_string("continuing_subword_prefix"), unknown,
                       limit.get<std::size_t>());
  return {std::move(vocabulary), std::move(model)};
}

std::vector<ScoredToken> read_scored(const json& value, const std::string& where) {
  if (!value.is_array() || value.empty())
    refuse(where,
           fmt::format("found {}; allowed: an array with at least one token", describe(value)));
  if (value.size() > kTokenIdLimit)
    refuse(where, fmt::format("{} tokens; allowed: at most {}", value.size(), kTokenIdLimit));
  std::vector<ScoredToken> tokens;
  tokens.reserve(value.size());
  for (const json& item : value) {
    const bool fits =
        item.is_array() && item.size() == 2 && item[0].is_string() && item[1].is_number();
    if (!fits || item[0].get_ref<const std::string&>().empty())
      refuse(fmt::format("{}: {}", where, tokens.size()),
             fmt::format("found {}; allowed: [\"spelling\", score]", describe(item)));
    tokens.push_back({item[0].get<std::string>(), item[1].get<double>()});
  }
  return tokens;
}

ModelSection read_unigram(StrictObject& object) {
  const std::string where = object.where() + ": vocab";
  std::vector<ScoredToken> tokens = read_scored(object.required("vocab"), where);
  Vocabulary vocabulary;
  for (const ScoredToken& token : tokens) {
    const auto id = static_cast<TokenId>(vocabulary.size());
    if (!vocabulary.emplace(token.spelling, id).second)
      refuse(where, fmt::format("token {} is given twice", in_quotes(token.spelling)));
  }
  std::optional<TokenId> unknown;
  if (const json* id = object.optional("unk_id")) {
    unknown = read_id(*id, object.where() + ": unk_id");
    if (*unknown >= tokens.size())
      refuse(object.where(),
             fmt::format("\"unk_id\" is {}; allowed: below {}, the size of the vocab", *unknown,
                         tokens.size()));
  }
  const bool byte_fallback = object.bool_or("byte_fallback", false);
  UnigramModel model(std::move(tokens), vocabulary, unknown, byte_fallback);
  return {std::move(vocabulary), std::move(model)};
}

}  // namespace

TokenId read_id(const json& value, const std::string& where) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kTokenIdLimit)
    refuse(where, fmt::format("id is {}; allowed: 0..{}", describe(value), kTokenIdLimit - 1));
  return value.get<TokenId>();
}

ModelSection read_model(const json& value, const std::string& where, bool after_byte_level) {
  StrictObject object(value, where);
  const json* type = object.optional("type");  // the first files had only BPE, and did not say so
  const auto read = [&]() -> ModelSection {
    if (type == nullptr || *type == "BPE") return read_bpe(object, after_byte_level);
    if (*type == "WordPiece") return read_wordpiece(object);
    if (*type == "Unigram") return read_unigram(object);
    refuse(where, fmt::format("type is {}, which is not supported; allowed: \"BPE\", \"Unigram\", "
                              "\"WordPiece\"",
                              describe(*type)));
  };
  ModelSection section = read();
  object.finish();
  return section;
}

bool takes_raw_bytes(const Model& model) {
  const auto* bpe = std::get_if<BpeModel>(&model);
  return bpe != nullptr && bpe->raw_bytes;
}

std::unique_ptr<WordEncoder> make_encoder(const Model& model) {
  struct Make {
    std::unique_ptr<WordEncoder> operator()(const BpeModel& bpe) const {
      return std::make_unique<BpeEncoder>(bpe);
    }
    std::unique_ptr<WordEncoder> operator()(const WordPieceModel& wordpiece) const {
      return std::make_unique<WordPieceEncoder>(wordpiece);
    }
    std::unique_ptr<WordEncoder> operator()(const UnigramModel& unigram) const {
      return std::make_unique<UnigramEncoder>(unigram);
    }
  };
  return std::visit(Make{}, model);
}

}  // namespace lenscpp::tokenizing
