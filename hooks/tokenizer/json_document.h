// JSON from files that nobody has checked: no duplicate keys, no deep nesting, no unread keys.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace lenscpp::tokenizing {

/// Parses UTF-8 JSON whose top level is an object. Throws std::invalid_argument naming `where` and
/// the byte for bad syntax, bad UTF-8, a key given twice, more than 64 levels, or more than 512
/// MiB.
nlohmann::json parse_json_object(std::string_view text, const std::string& where);

/// "an object", "the string \"x\"", "17": for messages.
std::string describe(const nlohmann::json& value);

/// Reads one JSON object strictly: what is asked for must have its type, and `finish` refuses every
/// key that was never asked for, since an unread field might change tokens. Throws
/// std::invalid_argument.
class StrictObject {
 public:
  /// `value` must outlive this.
  StrictObject(const nlohmann::json& value, std::string where);

  const std::string& where() const { return where_; }
  /// The value under `key`, or nullptr when it is missing or null.
  const nlohmann::json* optional(std::string_view key);
  /// The value under `key`; refused when it is missing or null.
  const nlohmann::json& required(std::string_view key);
  bool required_bool(std::string_view key);
  bool bool_or(std::string_view key, bool otherwise);
  const std::string& required_string(std::string_view key);
  /// Refuses `key` unless it is missing, null, or equal to `harmless`.
  void only(std::string_view key, const nlohmann::json& harmless);
  /// Refuses keys that no other call asked for.
  void finish() const;

 private:
  const nlohmann::json& value_;
  std::string where_;
  std::vector<std::string> known_;
};

}  // namespace lenscpp::tokenizing
