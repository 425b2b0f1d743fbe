// Field readers with their error messages.
#include "hooks/checkpoint/fields.h"

#include <cmath>
#include <stdexcept>
#include <utility>

#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {

using nlohmann::json;

Fields::Fields(const json& document, std::string origin)
    : document_(document), origin_(std::move(origin)) {
  if (!document.is_object())
    throw std::invalid_argument("[config] " + origin_ + ": holds a " + document.type_name() +
                                ", a JSON object is allowed");
}

void Fields::refuse(const std::string& field, const std::string& reason) const {
  throw std::invalid_argument("[config] " + origin_ + ": " + field + " " + reason);
}

std::optional<Fields::Found> Fields::find(Names spellings) {
  std::optional<Found> found;
  for (const char* name : spellings) {
    known_.insert(name);
    auto place = document_.find(name);
    if (place == document_.end() || place->is_null()) continue;
    if (found && *found->value != *place)
      refuse(name, "is " + show(*place) + ", but " + found->name + ", another spelling of it, is " +
                       show(*found->value) + "; they must agree");
    if (!found) found = Found{name, &*place};
  }
  return found;
}

std::optional<std::int64_t> Fields::optional_dimension(Names spellings, std::int64_t largest) {
  auto found = find(spellings);
  if (!found) return std::nullopt;
  const json& value = *found->value;
  // A document built in memory holds signed integers, a parsed one unsigned ones.
  bool fits = value.is_number_unsigned()
                  ? value.get<std::uint64_t>() >= 1 &&
                        value.get<std::uint64_t>() <= static_cast<std::uint64_t>(largest)
                  : value.is_number_integer() && value.get<std::int64_t>() >= 1 &&
                        value.get<std::int64_t>() <= largest;
  if (!fits)
    refuse(found->name, "is " + show(value) + ", an integer from 1 to " + std::to_string(largest) +
                            " is allowed");
  return value.get<std::int64_t>();
}

std::int64_t Fields::dimension(Names spellings, std::int64_t largest) {
  if (auto found = optional_dimension(spellings, largest)) return *found;
  std::vector<std::string> present;
  for (const auto& item : document_.items()) present.push_back(item.key());
  refuse(*spellings.begin(), "is missing, an integer from 1 to " + std::to_string(largest) +
                                 " is required; the nearest fields present are " +
                                 nearest_names(*spellings.begin(), present));
}

double Fields::small_number(Names spellings, double absent) {
  auto found = find(spellings);
  if (!found) return absent;
  double value = found->value->is_number() ? found->value->get<double>() : 0;
  if (!(value > 0 && value <= 1))
    refuse(found->name,
           "is " + show(*found->value) + ", a number above 0 and at most 1 is allowed");
  return value;
}

std::optional<double> Fields::number(Names spellings) {
  auto found = find(spellings);
  if (!found) return std::nullopt;
  double value = found->value->is_number() ? found->value->get<double>() : NAN;
  if (!std::isfinite(value))
    refuse(found->name, "is " + show(*found->value) + ", a number is allowed");
  return value;
}

const json* Fields::object(Names spellings) {
  auto found = find(spellings);
  if (!found) return nullptr;
  if (!found->value->is_object())
    refuse(found->name, "is " + show(*found->value) + ", an object is allowed");
  return found->value;
}

bool Fields::flag(Names spellings, bool absent) {
  auto found = find(spellings);
  if (!found) return absent;
  if (!found->value->is_boolean())
    refuse(found->name, "is " + show(*found->value) + ", true or false is allowed");
  return found->value->get<bool>();
}

std::optional<std::string> Fields::text(Names spellings) {
  auto found = find(spellings);
  if (!found) return std::nullopt;
  if (!found->value->is_string())
    refuse(found->name, "is " + show(*found->value) + ", a string is allowed");
  return found->value->get<std::string>();
}

std::vector<std::string> Fields::texts(Names spellings) {
  auto found = find(spellings);
  std::vector<std::string> result;
  if (!found) return result;
  if (!found->value->is_array())
    refuse(found->name, "is " + show(*found->value) + ", an array of strings is allowed");
  for (const json& element : *found->value) {
    if (!element.is_string())
      refuse(found->name, "holds " + show(element) + ", strings are allowed");
    result.push_back(element.get<std::string>());
  }
  return result;
}

void Fields::neutral(std::initializer_list<std::string_view> names) {
  for (std::string_view name : names) known_.emplace(name);
}

void Fields::refuse_if_set(const char* name, const std::string& reason) {
  auto found = find({name});
  if (!found) return;
  const json& value = *found->value;
  if (value == false || ((value.is_structured() || value.is_string()) && value.empty()) ||
      value == "")
    return;
  refuse(name, "is " + show(value) + "; " + reason);
}

void Fields::finish() const {
  for (const auto& [name, value] : document_.items()) {
    if (known_.contains(name) || value.is_null()) continue;
    std::vector<std::string> allowed(known_.begin(), known_.end());
    refuse("field " + in_quotes(name),
           "is " + show(value) +
               ", but it is not known and may change what the model computes; the nearest known "
               "fields are " +
               nearest_names(name, allowed) + "; remove it if you know that it changes nothing");
  }
}

}  // namespace lenscpp
