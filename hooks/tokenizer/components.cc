#include "hooks/tokenizer/components.h"

#include <fmt/format.h>

#include <array>
#include <nlohmann/json.hpp>

#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {

using nlohmann::json;

void refuse_type(const std::string& where, const std::string& type, std::string_view allowed) {
  refuse(where, fmt::format("type {} is not supported; allowed: {}", in_quotes(type), allowed));
}

std::vector<Part> parts_of(StrictObject& sequence, std::string_view key) {
  const json& parts = sequence.required(key);
  if (!parts.is_array())
    refuse(sequence.where(), fmt::format("\"{}\" is {}; allowed: an array", key, describe(parts)));
  std::vector<Part> out;
  for (const json& part : parts)
    out.push_back({part, fmt::format("{}: {} {}", sequence.where(), key, out.size())});
  return out;
}

const std::string& one_character(StrictObject& object, std::string_view key) {
  const std::string& text = object.required_string(key);
  if (text.empty() || utf8::step(text, 0).length != text.size())
    refuse(object.where(),
           fmt::format("\"{}\" is {}; allowed: one character", key, in_quotes(text)));
  return text;
}

SplitPattern read_pattern(StrictObject& object) {
  StrictObject pattern(object.required("pattern"), object.where() + ": pattern");
  const bool is_regex = pattern.optional("Regex") != nullptr;
  const bool is_string = pattern.optional("String") != nullptr;
  pattern.finish();
  if (is_regex == is_string)
    refuse(pattern.where(), "allowed: one of {\"Regex\": ...} and {\"String\": ...}");
  const std::string& text = pattern.required_string(is_regex ? "Regex" : "String");
  return is_regex ? SplitPattern::from_regex(text, pattern.where())
                  : SplitPattern::from_literal(text, pattern.where());
}

SplitBehavior read_behavior(StrictObject& object) {
  struct Named {
    std::string_view name;
    SplitBehavior behavior;
  };
  constexpr std::array kBehaviors = {
      Named{"Removed", SplitBehavior::removed}, Named{"Isolated", SplitBehavior::isolated},
      Named{"MergedWithPrevious", SplitBehavior::merged_with_previous},
      Named{"MergedWithNext", SplitBehavior::merged_with_next},
      Named{"Contiguous", SplitBehavior::contiguous}};
  const std::string& name = object.required_string("behavior");
  for (const Named& named : kBehaviors) {
    if (named.name == name) return named.behavior;
  }
  refuse(object.where(), fmt::format("behavior {} is not supported; allowed: Removed, Isolated, "
                                     "MergedWithPrevious, MergedWithNext, Contiguous",
                                     in_quotes(name)));
}

}  // namespace lenscpp::tokenizing
