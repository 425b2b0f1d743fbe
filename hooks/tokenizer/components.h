// What the stages of a tokenizer.json have in common: components told apart by "type".
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/split_pattern.h"

namespace lenscpp::tokenizing {

/// Refuses a component by name. `allowed` are the kinds that its place may hold.
[[noreturn]] void refuse_type(const std::string& where, const std::string& type,
                              std::string_view allowed);
/// The parts of a Sequence, under `key`, each with its place in the file. Refuses what is no array.
struct Part {
  const nlohmann::json& value;
  std::string where;
};
std::vector<Part> parts_of(StrictObject& sequence, std::string_view key);
/// A string that is one character. Refuses any other.
const std::string& one_character(StrictObject& object, std::string_view key);
/// "pattern": {"Regex": ...} or {"String": ...}.
SplitPattern read_pattern(StrictObject& object);
/// "behavior" of a pre-tokenizer that splits.
SplitBehavior read_behavior(StrictObject& object);

}  // namespace lenscpp::tokenizing
