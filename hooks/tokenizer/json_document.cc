// nlohmann's parser keeps the last of two equal keys; this one is driven by events, so that it can
// refuse.
#include "hooks/tokenizer/json_document.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxDepth = 64;
constexpr std::size_t kMaxBytes = std::size_t{512} << 20U;

// The names of these functions are nlohmann's SAX interface.
class Builder {
 public:
  explicit Builder(const std::string& where) : where_(where) {}
  json take() { return std::move(root_); }

  bool null() { return put(nullptr); }
  bool boolean(bool value) { return put(value); }
  bool number_integer(json::number_integer_t value) { return put(value); }
  bool number_unsigned(json::number_unsigned_t value) { return put(value); }
  bool number_float(json::number_float_t value, const json::string_t&) { return put(value); }
  bool string(json::string_t& value) { return put(std::move(value)); }
  bool binary(json::binary_t&) { refuse(where_, "binary values are not JSON"); }
  bool start_object(std::size_t) { return open(json::object()); }
  bool start_array(std::size_t) { return open(json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(json::string_t& name) {
    if (open_.back()->contains(name))
      refuse(where_, fmt::format("key {} is given twice", in_quotes(name)));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t at, const std::string&, const json::exception& error) {
    refuse(where_, fmt::format("not JSON at byte {}: {}", at, in_quotes(error.what())));
  }

 private:
  json* place(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    json& parent = *open_.back();
    if (parent.is_array()) {
      parent.push_back(std::move(value));
      return &parent.back();
    }
    return &(parent[key_] = std::move(value));
  }
  bool put(json value) {
    place(std::move(value));
    return true;
  }
  bool open(json value) {
    if (open_.size() >= kMaxDepth)
      refuse(where_, fmt::format("nested deeper than {} levels", kMaxDepth));
    open_.push_back(place(std::move(value)));
    return true;
  }
  bool close() {
    open_.pop_back();
    return true;
  }

  const std::string& where_;
  json root_;
  std::vector<json*> open_;  // a container stays where it is while it is open
  std::string key_;
};

std::string joined(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  std::string out;
  for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
  return out;
}

}  // namespace

json parse_json_object(std::string_view text, const std::string& where) {
  if (text.size() > kMaxBytes)
    refuse(where, fmt::format("{} bytes; allowed: at most {}", text.size(), kMaxBytes));
  Builder builder(where);
  json::sax_parse(text.begin(), text.end(), &builder);
  json root = builder.take();
  if (!root.is_object()) refuse(where, fmt::format("found {}; allowed: an object", describe(root)));
  return root;
}

std::string describe(const json& value) {
  switch (value.type()) {
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return "an array";
    case json::value_t::string:
      return "the string " + in_quotes(value.get_ref<const std::string&>());
    case json::value_t::null:
      return "null";
    case json::value_t::boolean:
    case json::value_t::number_integer:
    case json::value_t::number_unsigned:
    case json::value_t::number_float:
      return value.dump();
    case json::value_t::binary:
    case json::value_t::discarded:
      break;
  }
  return "no JSON";
}

StrictObject::StrictObject(const json& value, std::string where)
    : value_(value), where_(std::move(where)) {
  if (!value_.is_object())
    refuse(where_, fmt::format("found {}; allowed: an object", describe(value_)));
}

const json* StrictObject::optional(std::string_view key) {
  known_.emplace_back(key);
  const auto found = value_.find(known_.back());
  return found == value_.end() || found->is_null() ? nullptr : &*found;
}

const json& StrictObject::required(std::string_view key) {
  const json* found = optional(key);
  if (found == nullptr) refuse(where_, fmt::format("\"{}\" is missing", key));
  return *found;
}

bool StrictObject::required_bool(std::string_view key) {
  required(key);
  return bool_or(key, false);
}

bool StrictObject::bool_or(std::string_view key, bool otherwise) {
  const json* found = optional(key);
  if (found == nullptr) return otherwise;
  if (!found->is_boolean())
    refuse(where_, fmt::format("\"{}\" is {}; allowed: true, false", key, describe(*found)));
  return found->get<bool>();
}

const std::string& StrictObject::required_string(std::string_view key) {
  const json& found = required(key);
  if (!found.is_string())
    refuse(where_, fmt::format("\"{}\" is {}; allowed: a string", key, describe(found)));
  return found.get_ref<const std::string&>();
}

void StrictObject::only(std::string_view key, const json& harmless) {
  const json* found = optional(key);
  if (found != nullptr && *found != harmless)
    refuse(where_, fmt::format("\"{}\" is {}, which is not supported; allowed: null, {}", key,
                               describe(*found), describe(harmless)));
}

void StrictObject::finish() const {
  for (const auto& [key, unused] : value_.items()) {
    if (std::find(known_.begin(), known_.end(), key) == known_.end())
      refuse(where_, fmt::format("unknown key {}; allowed: {}", in_quotes(key), joined(known_)));
  }
}

}  // namespace lenscpp::tokenizing
