// Each step as the class of its name in `tokenizers` has it.
#include "hooks/tokenizer/pre_tokenizers.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/components.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"

namespace lenscpp::tokenizing {
namespace {

using namespace pre_tokenizing;
using nlohmann::json;
using Pieces = std::vector<Piece>;

constexpr std::string_view kAllowed =
    "BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, Metaspace, Punctuation, Sequence, "
    "Split, Whitespace, WhitespaceSplit";

// The parts of a piece, which lie in its text in their order.
void append_parts(const Piece& piece, const std::vector<std::string_view>& parts, Pieces& out) {
  for (const std::string_view part : parts) {
    const auto before = static_cast<std::size_t>(part.data() - piece.text.data());
    const std::size_t n_first = piece.n_first > before ? piece.n_first - before : 0;
    out.push_back({part, std::min(n_first, part.size())});
  }
}

std::vector<std::string_view> cut_before_each(std::string_view text, std::string_view mark) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const std::size_t next = std::min(text.find(mark, 1), text.size());
    parts.push_back(text.substr(0, next));
    text.remove_prefix(next);
  }
  return parts;
}

// Applies one step to one piece.
class Apply {
 public:
  Apply(Piece piece, std::deque<std::string>& changed, Pieces& out)
      : piece_(piece), changed_(changed), out_(out) {}

  void operator()(const Split& step) const {
    append_parts(piece_, step.pattern.split(piece_.text, step.behavior, step.invert), out_);
  }

  void operator()(const Metaspace& step) const {
    const Piece piece = with_prefix(spaces_replaced(step.replacement), step);
    if (step.split) {
      append_parts(piece, cut_before_each(piece.text, step.replacement), out_);
    } else {
      out_.push_back(piece);
    }
  }

  void operator()(const ByteLevel& step) const {
    Piece piece = piece_;
    if (step.add_prefix_space && !piece.text.starts_with(' ')) {
      piece = {changed_.emplace_back(fmt::format(" {}", piece.text)),
               piece.n_first > 0 ? piece.n_first + 1 : 0};
    }
    const std::size_t begin = out_.size();
    if (step.pattern) {
      append_parts(piece, step.pattern->split(piece.text, SplitBehavior::isolated, false), out_);
    } else {
      out_.push_back(piece);
    }
    if (!step.spells) return;
    for (std::size_t i = begin; i < out_.size(); ++i) {
      const std::string_view first = out_[i].text.substr(0, out_[i].n_first);
      out_[i] = {changed_.emplace_back(byte_alphabet::spell(out_[i].text)),
                 byte_alphabet::spell(first).size()};
    }
  }

 private:
  Piece spaces_replaced(const std::string& replacement) const {
    if (piece_.text.find(' ') == std::string_view::npos) return piece_;
    std::string& out = changed_.emplace_back();
    std::size_t n_first = 0;
    for (std::size_t at = 0; at < piece_.text.size(); ++at) {
      if (piece_.text[at] == ' ') {
        out += replacement;
      } else {
        out += piece_.text[at];
      }
      if (at + 1 == piece_.n_first) n_first = out.size();
    }
    return {out, n_first};
  }

  Piece with_prefix(Piece piece, const Metaspace& step) const {
    if (step.scheme == PrependScheme::never || piece.text.starts_with(step.replacement))
      return piece;
    if (step.scheme == PrependScheme::first && piece.n_first == 0) return piece;
    const std::size_t n_first = piece.n_first > 0 ? piece.n_first + step.replacement.size() : 0;
    return {changed_.emplace_back(fmt::format("{}{}", step.replacement, piece.text)), n_first};
  }

  Piece piece_;
  std::deque<std::string>& changed_;
  Pieces& out_;
};

Step digits(StrictObject& object) {
  const bool alone = object.required_bool("individual_digits");
  return Split{SplitPattern::one_digit(),
               alone ? SplitBehavior::isolated : SplitBehavior::contiguous};
}

Step punctuation(StrictObject& object) {
  const bool unset = object.optional("behavior") == nullptr;
  return Split{SplitPattern::one_punctuation(),
               unset ? SplitBehavior::isolated : read_behavior(object)};
}

Step byte_level(StrictObject& object) {
  ByteLevel step{.add_prefix_space = object.required_bool("add_prefix_space")};
  object.bool_or("trim_offsets", true);  // offsets are not computed here
  if (object.bool_or("use_regex", true))
    step.pattern = SplitPattern::from_regex(kGpt2Pattern, object.where());
  return step;
}

Step metaspace(StrictObject& object) {
  Metaspace step{.replacement = one_character(object, "replacement"),
                 .scheme = read_prepend_scheme(object),
                 .split = object.bool_or("split", true)};
  object.optional("str_rep");  // written by old versions, which did not read it
  return step;
}

// What one component stands for; nothing for a kind that is not known.
std::vector<Step> read_steps(const std::string& type, StrictObject& object) {
  if (type == "ByteLevel") return {byte_level(object)};
  if (type == "Metaspace") return {metaspace(object)};
  if (type == "Digits") return {digits(object)};
  if (type == "Punctuation") return {punctuation(object)};
  if (type == "Whitespace")
    return {Split{SplitPattern::words_and_symbols(), SplitBehavior::removed, true}};
  if (type == "WhitespaceSplit")
    return {Split{SplitPattern::one_white_space(), SplitBehavior::removed}};
  if (type == "BertPreTokenizer")
    return {Split{SplitPattern::one_white_space(), SplitBehavior::removed},
            Split{SplitPattern::one_punctuation(), SplitBehavior::isolated}};
  if (type == "CharDelimiterSplit")
    return {Split{SplitPattern::from_literal(one_character(object, "delimiter"), object.where()),
                  SplitBehavior::removed}};
  if (type == "Split")
    return {Split{read_pattern(object), read_behavior(object), object.required_bool("invert")}};
  return {};
}

}  // namespace

PrependScheme read_prepend_scheme(StrictObject& object) {
  const json* scheme = object.optional("prepend_scheme");
  const bool add = object.bool_or("add_prefix_space", true);
  if (scheme == nullptr && add) return PrependScheme::always;
  if (scheme != nullptr && *scheme == "never") return PrependScheme::never;
  if (!add)
    refuse(object.where(), "\"add_prefix_space\" is false; allowed: \"prepend_scheme\": \"never\"");
  if (*scheme == "first") return PrependScheme::first;
  if (*scheme == "always") return PrependScheme::always;
  refuse(object.where(),
         fmt::format("\"prepend_scheme\" is {}; allowed: \"first\", \"never\", \"always\"",
                     describe(*scheme)));
}

PreTokenizer PreTokenizer::read(const json& value, const std::string& where) {
  PreTokenizer made;
  made.add(value, where);
  return made;
}

void PreTokenizer::add(const json& value, const std::string& where) {
  StrictObject object(value, where);
  const std::string& type = object.required_string("type");
  if (type == "Sequence") {
    for (const Part& part : parts_of(object, "pretokenizers")) add(part.value, part.where);
  } else {
    std::vector<Step> steps = read_steps(type, object);
    if (steps.empty()) refuse_type(where, type, kAllowed);
    // It would spell the spelling, twice as long each time.
    if (type == "ByteLevel" && add_prefix_space()) refuse(where, "a second ByteLevel");
    std::move(steps.begin(), steps.end(), std::back_inserter(steps_));
  }
  object.finish();
}

bool PreTokenizer::ends_in_byte_level() const {
  const auto is_byte_level = [](const Step& step) {
    return std::holds_alternative<ByteLevel>(step);
  };
  return !steps_.empty() && is_byte_level(steps_.back()) &&
         std::count_if(steps_.begin(), steps_.end(), is_byte_level) == 1;
}

void PreTokenizer::leave_bytes_raw() { std::get<ByteLevel>(steps_.back()).spells = false; }

std::optional<bool> PreTokenizer::add_prefix_space() const {
  std::optional<bool> found;
  for (const Step& step : steps_) {
    if (const auto* bytes = std::get_if<ByteLevel>(&step)) found = bytes->add_prefix_space;
  }
  return found;
}

std::vector<Piece> PreTokenizer::words(Piece stretch, std::deque<std::string>& changed) const {
  Pieces pieces{stretch};
  for (const Step& step : steps_) {
    Pieces next;
    next.reserve(pieces.size());
    for (const Piece& piece : pieces) std::visit(Apply(piece, changed, next), step);
    pieces = std::move(next);
  }
  return pieces;
}

}  // namespace lenscpp::tokenizing
