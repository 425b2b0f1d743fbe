// The section "pre_tokenizer" of a tokenizer.json: how text is cut into words.
#pragma once

#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/split_pattern.h"

namespace lenscpp::tokenizing {

/// A stretch of text. `n_first` of its bytes came from the first character of the whole text.
struct Piece {
  std::string_view text;
  std::size_t n_first = 0;
};

namespace pre_tokenizing {

/// Split, Digits, Punctuation, Whitespace and the like: all cut at the matches of a pattern.
struct Split {
  SplitPattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;
};
enum class PrependScheme { first, never, always };
struct Metaspace {
  std::string replacement;
  PrependScheme scheme = PrependScheme::always;
  bool split = true;
};
struct ByteLevel {
  bool add_prefix_space = false;        ///< every part starts with a space
  std::optional<SplitPattern> pattern;  ///< GPT-2's, when use_regex
  bool spells = true;                   ///< as the vocabulary does; false: words are raw bytes
};
using Step = std::variant<Split, Metaspace, ByteLevel>;

}  // namespace pre_tokenizing

/// "prepend_scheme" of a Metaspace, or what its older "add_prefix_space" stands for. Throws
/// std::invalid_argument where they contradict each other.
pre_tokenizing::PrependScheme read_prepend_scheme(StrictObject& object);

/// The steps of a pre-tokenizer, in order. None: every stretch of text is one word.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  /// Reads a pre-tokenizer; `where` is its place in the file. Throws std::invalid_argument for a
  /// kind or a field that is not supported, naming it and what is allowed.
  static PreTokenizer read(const nlohmann::json& value, const std::string& where);

  /// Whether ByteLevel is the last step: words may then stay raw bytes.
  bool ends_in_byte_level() const;
  /// For a model that takes raw bytes. Only where ends_in_byte_level().
  void leave_bytes_raw();
  /// add_prefix_space of the last ByteLevel, if any.
  std::optional<bool> add_prefix_space() const;

  /// The words of a stretch of text, none of them empty; `changed` holds those that are not part of
  /// it, and must outlive them.
  std::vector<Piece> words(Piece stretch, std::deque<std::string>& changed) const;

 private:
  void add(const nlohmann::json& value, const std::string& where);
  std::vector<pre_tokenizing::Step> steps_;
};

}  // namespace lenscpp::tokenizing
