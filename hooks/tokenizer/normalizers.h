// The section "normalizer" of a tokenizer.json: what is done to text before it is split.
#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hooks/tokenizer/normalization.h"
#include "hooks/tokenizer/split_pattern.h"

namespace lenscpp::tokenizing {

/// Text on its way through a tokenizer. `n_first` of its bytes came from the first character of
/// what the user gave: Metaspace asks where that is.
struct Text {
  std::string bytes;
  std::size_t n_first = 0;
};

namespace normalizing {

struct Unicode {
  NormalizationForm form = NormalizationForm::nfc;
};
struct Lowercase {};
struct StripAccents {};
struct Nmt {};
struct Strip {
  bool left = false;
  bool right = false;
};
struct Replace {
  SplitPattern pattern;
  std::string content;
};
struct Prepend {
  std::string content;
};
struct Bert {
  bool clean_text = false;
  bool handle_chinese_chars = false;
  bool strip_accents = false;
  bool lowercase = false;
};
using Step = std::variant<Unicode, Lowercase, StripAccents, Nmt, Strip, Replace, Prepend, Bert>;

}  // namespace normalizing

/// The steps of a normalizer, in order. None: the text stays as it is.
class Normalizer {
 public:
  Normalizer() = default;
  /// Reads a normalizer; `where` is its place in the file. Throws std::invalid_argument for a kind
  /// or a field that is not supported, naming it and what is allowed.
  static Normalizer read(const nlohmann::json& value, const std::string& where);

  bool empty() const { return steps_.empty(); }
  /// Throws std::invalid_argument when the steps make the text more than 32 times longer.
  void apply(Text& text) const;

 private:
  void add(const nlohmann::json& value, const std::string& where);
  std::vector<normalizing::Step> steps_;
};

}  // namespace lenscpp::tokenizing
