// Reads a config.json field by field and refuses what nobody asked for: an unknown field may change
// numbers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace lenscpp {

/// The fields of one JSON object. Readers name a field by all its spellings; null counts as absent.
/// Every function throws std::invalid_argument naming file, field, what was found and what is
/// allowed.
class Fields {
 public:
  using Names = std::initializer_list<const char*>;

  Fields(const nlohmann::json& document, std::string origin);

  /// Whether the field is there, be it null: where a family tells that from an absent one.
  bool has(const char* name) const { return document_.contains(name); }
  /// A required integer in [1, largest].
  std::int64_t dimension(Names spellings, std::int64_t largest);
  /// The same where a family knows what absence means.
  std::optional<std::int64_t> optional_dimension(Names spellings, std::int64_t largest);
  /// A number in (0, 1].
  double small_number(Names spellings, double absent);
  /// A finite number, nothing where absent.
  std::optional<double> number(Names spellings);
  /// An object, null where absent.
  const nlohmann::json* object(Names spellings);
  bool flag(Names spellings, bool absent);
  std::optional<std::string> text(Names spellings);
  std::vector<std::string> texts(Names spellings);

  /// Fields that change no number of a forward pass: their values are not looked at.
  void neutral(std::initializer_list<std::string_view> names);
  /// Refuses `name` unless it is absent, null, false or empty; `reason` ends the message.
  void refuse_if_set(const char* name, const std::string& reason);
  /// Refuses every field that no call above named. A null is let pass: it stands for "not set".
  void finish() const;

  const std::string& origin() const { return origin_; }
  [[noreturn]] void refuse(const std::string& field, const std::string& reason) const;

 private:
  struct Found {
    std::string name;
    const nlohmann::json* value;
  };
  std::optional<Found> find(Names spellings);

  const nlohmann::json& document_;
  std::string origin_;
  std::set<std::string> known_;
};

}  // namespace lenscpp
