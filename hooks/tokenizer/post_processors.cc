// Offsets are not computed, so what a post-processor says of trimming cannot matter.
#include "hooks/tokenizer/post_processors.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "hooks/tokenizer/components.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/models.h"
#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;

constexpr std::string_view kAllowed =
    "BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing";

std::int64_t read_type_id(StrictObject& object) {
  const json& value = object.required("type_id");
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() > 0xFFFFFFFFU)
    refuse(object.where(),
           fmt::format("\"type_id\" is {}; allowed: 0..4294967295", describe(value)));
  return value.get<std::int64_t>();
}

const json& array_under(StrictObject& object, std::string_view key) {
  const json& value = object.required(key);
  if (!value.is_array())
    refuse(object.where(), fmt::format("\"{}\" is {}; allowed: an array", key, describe(value)));
  return value;
}

}  // namespace

class PostProcessor::Reader {
 public:
  explicit Reader(const std::unordered_set<TokenId>& ids) : ids_(ids) {}

  PostProcessor read(const json& value, const std::string& where) {
    add(value, where);
    return std::move(result_);
  }

 private:
  void add(const json& value, const std::string& where) {
    StrictObject object(value, where);
    const std::string& type = object.required_string("type");
    if (type == "Sequence") {
      for (const Part& part : parts_of(object, "processors")) add(part.value, part.where);
    } else if (type == "ByteLevel") {
      for (const std::string_view key : {"add_prefix_space", "trim_offsets", "use_regex"})
        object.bool_or(key, true);
    } else if (type == "TemplateProcessing") {
      only_one(object, type);
      read_templates(object);
    } else if (type == "BertProcessing") {
      only_one(object, type);
      read_bert(object);
    } else if (type == "RobertaProcessing") {
      only_one(object, type);
      read_roberta(object);
    } else {
      refuse_type(where, type, kAllowed);
    }
    object.finish();
  }

  // A second one would be applied to the parts that the first one made.
  void only_one(const StrictObject& object, const std::string& type) {
    if (adds_tokens_)
      refuse(object.where(),
             fmt::format("{} after another that adds tokens; allowed: one", in_quotes(type)));
    adds_tokens_ = true;
  }

  std::int64_t read_token(const json& value, const std::string& where) const {
    const TokenId id = read_id(value, where);
    if (!ids_.contains(id)) refuse(where, fmt::format("id {} is that of no token", id));
    return id;
  }

  // ["[SEP]", 102]
  std::int64_t named_token(StrictObject& object, std::string_view key) const {
    const json& value = object.required(key);
    if (!value.is_array() || value.size() != 2 || !value[0].is_string())
      refuse(object.where(),
             fmt::format("\"{}\" is {}; allowed: [\"spelling\", id]", key, describe(value)));
    return read_token(value[1], fmt::format("{}: {}", object.where(), key));
  }

  void read_bert(StrictObject& object) {
    const Item sep{.kind = Item::Kind::tokens, .tokens = {named_token(object, "sep")}};
    const Item cls{.kind = Item::Kind::tokens, .tokens = {named_token(object, "cls")}};
    Item last = sep;
    last.type_id = 1;
    result_.single_ = {cls, {}, sep};
    result_.pair_ = {cls, {}, sep, {.kind = Item::Kind::second_text, .type_id = 1}, last};
  }

  void read_roberta(StrictObject& object) {
    const Item sep{.kind = Item::Kind::tokens, .tokens = {named_token(object, "sep")}};
    const Item cls{.kind = Item::Kind::tokens, .tokens = {named_token(object, "cls")}};
    for (const std::string_view key : {"trim_offsets", "add_prefix_space"})
      object.bool_or(key, true);
    result_.single_ = {cls, {}, sep};
    result_.pair_ = {cls, {}, sep, sep, {.kind = Item::Kind::second_text}, sep};
  }

  void read_templates(StrictObject& object) {
    const json& tokens = object.required("special_tokens");
    result_.single_ = read_template(object, "single", tokens);
    result_.pair_ = read_template(object, "pair", tokens);
    const auto count = [](const Template& items, Item::Kind kind) {
      return std::count_if(items.begin(), items.end(),
                           [&](const Item& item) { return item.kind == kind; });
    };
    const auto first = Item::Kind::first_text, second = Item::Kind::second_text;
    if (count(result_.single_, first) != 1 || count(result_.single_, second) != 0)
      refuse(object.where(), "\"single\" does not hold sequence A once and B never");
    if (count(result_.pair_, first) != 1 || count(result_.pair_, second) != 1)
      refuse(object.where(), "\"pair\" does not hold sequences A and B once each");
  }

  Template read_template(StrictObject& object, std::string_view key, const json& tokens) const {
    Template items;
    for (const json& item : array_under(object, key))
      items.push_back(
          read_item(item, fmt::format("{}: {} {}", object.where(), key, items.size()), tokens));
    return items;
  }

  // {"Sequence": {"id": "A", "type_id": 0}} or {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
  Item read_item(const json& value, const std::string& where, const json& tokens) const {
    StrictObject object(value, where);
    const json* text = object.optional("Sequence");
    const json* token = object.optional("SpecialToken");
    object.finish();
    if ((text == nullptr) == (token == nullptr))
      refuse(where, "allowed: one of {\"Sequence\": ...} and {\"SpecialToken\": ...}");
    StrictObject inner(text != nullptr ? *text : *token, where);
    const std::string& id = inner.required_string("id");
    Item item{.type_id = read_type_id(inner)};
    inner.finish();
    if (token != nullptr) {
      item.kind = Item::Kind::tokens;
      item.tokens = read_special(id, where, tokens);
    } else if (id == "B") {
      item.kind = Item::Kind::second_text;
    } else if (id != "A") {
      refuse(where, fmt::format("\"id\" is {}; allowed: \"A\", \"B\"", in_quotes(id)));
    }
    return item;
  }

  // {"[CLS]": {"id": "[CLS]", "ids": [101], "tokens": ["[CLS]"]}}
  std::vector<std::int64_t> read_special(const std::string& name, const std::string& where,
                                         const json& tokens) const {
    const auto found = tokens.find(name);
    if (!tokens.is_object() || found == tokens.end())
      refuse(where, fmt::format("{} is not among \"special_tokens\"", in_quotes(name)));
    StrictObject special(*found, fmt::format("{}: special token {}", where, in_quotes(name)));
    special.required_string("id");
    std::vector<std::int64_t> ids;
    for (const json& id : array_under(special, "ids"))
      ids.push_back(read_token(id, special.where()));
    if (array_under(special, "tokens").size() != ids.size())
      refuse(special.where(), "\"ids\" and \"tokens\" are not equally long");
    special.finish();
    return ids;
  }

  const std::unordered_set<TokenId>& ids_;
  PostProcessor result_;
  bool adds_tokens_ = false;
};

PostProcessor::PostProcessor()
    : single_{{}}, pair_{{}, {.kind = Item::Kind::second_text, .type_id = 1}} {}

PostProcessor PostProcessor::read(const json& value, const std::string& where,
                                  const std::unordered_set<TokenId>& ids) {
  return Reader(ids).read(value, where);
}

SpecialEncoding PostProcessor::fill(const Template& items, std::span<const std::int64_t> first,
                                    std::span<const std::int64_t> second) {
  SpecialEncoding out;
  for (const Item& item : items) {
    std::span<const std::int64_t> part = item.tokens;
    if (item.kind == Item::Kind::first_text) part = first;
    if (item.kind == Item::Kind::second_text) part = second;
    out.ids.insert(out.ids.end(), part.begin(), part.end());
    out.type_ids.resize(out.ids.size(), item.type_id);
  }
  return out;
}

SpecialEncoding PostProcessor::apply(std::span<const std::int64_t> text) const {
  return fill(single_, text, {});
}

SpecialEncoding PostProcessor::apply(std::span<const std::int64_t> first,
                                     std::span<const std::int64_t> second) const {
  return fill(pair_, first, second);
}

}  // namespace lenscpp::tokenizing
