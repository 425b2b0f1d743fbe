// The section "post_processor" of a tokenizer.json: the special tokens around a text or two.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "hooks/tokenizer/special_encoding.h"
#include "hooks/tokenizer/vocabulary.h"

namespace lenscpp::tokenizing {

/// Where special tokens stand around one text, and around two.
class PostProcessor {
 public:
  /// Adds nothing.
  PostProcessor();
  /// Reads a post-processor; `where` is its place in the file. Throws std::invalid_argument for a
  /// kind or a field that is not supported, a template that does not hold each text once, and a
  /// token that is not among `ids`.
  static PostProcessor read(const nlohmann::json& value, const std::string& where,
                            const std::unordered_set<TokenId>& ids);

  SpecialEncoding apply(std::span<const std::int64_t> text) const;
  SpecialEncoding apply(std::span<const std::int64_t> first,
                        std::span<const std::int64_t> second) const;

 private:
  struct Item {
    enum class Kind { first_text, second_text, tokens } kind = Kind::first_text;
    std::int64_t type_id = 0;
    std::vector<std::int64_t> tokens = {};
  };
  using Template = std::vector<Item>;
  class Reader;
  static SpecialEncoding fill(const Template& items, std::span<const std::int64_t> first,
                              std::span<const std::int64_t> second);

  Template single_;
  Template pair_;
};

}  // namespace lenscpp::tokenizing
