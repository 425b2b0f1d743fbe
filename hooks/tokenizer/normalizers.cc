// Each step as the class of its name in `tokenizers` has it, corner cases included.
#include "hooks/tokenizer/normalizers.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "hooks/tokenizer/code_points.h"
#include "hooks/tokenizer/components.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

using namespace normalizing;
using nlohmann::json;

constexpr std::string_view kAllowed =
    "BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Nmt, Prepend, Replace, Sequence, Strip, "
    "StripAccents";

// Text may grow: a Chinese character by two spaces, U+FDFA to eleven times its bytes.
constexpr std::size_t kMaxGrowth = 32;
constexpr std::size_t kFreeGrowth_bytes = 4096;

void require_size(std::size_t n_bytes, std::size_t limit) {
  if (n_bytes > limit)
    refuse("normalize",
           fmt::format("the normalizer makes {} bytes; allowed: {}, 32 times what came in", n_bytes,
                       limit));
}

// Replaces every character by what `map(character, out)` appends.
template <class Map>
void each_character(Text& text, const Map& map) {
  std::string out;
  out.reserve(text.bytes.size() + text.bytes.size() / 8);
  std::size_t n_first = 0;
  for (std::size_t at = 0; at < text.bytes.size();) {
    const utf8::Step s = utf8::step(text.bytes, at);
    at += s.length;
    map(s.code_point, out);
    if (at <= text.n_first) n_first = out.size();
  }
  text = {std::move(out), n_first};
}

bool nmt_removes(char32_t c) {
  return (c >= 0x01 && c <= 0x08) || c == 0x0B || (c >= 0x0E && c <= 0x1F) || c == 0x7F ||
         c == 0x8F || c == 0x9F;
}

bool nmt_blanks(char32_t c) {
  return c == 0x09 || c == 0x0A || c == 0x0C || c == 0x0D || c == 0x1680 ||
         (c >= 0x200B && c <= 0x200F) || c == 0x2028 || c == 0x2029 || c == 0x2581 || c == 0xFEFF ||
         c == 0xFFFD;
}

// One step applied to a text that may become `limit_` bytes long.
class Apply {
 public:
  Apply(Text& text, std::size_t limit) : text_(text), limit_(limit) {}

  void operator()(const Unicode& step) const {
    const std::string first = normalized(first_characters(), step.form);
    text_.bytes = normalized(text_.bytes, step.form);
    text_.n_first = std::min(first.size(), text_.bytes.size());
  }
  void operator()(const Lowercase&) const {
    each_character(text_, [](char32_t c, std::string& out) { append_lowercase(out, c); });
  }
  void operator()(const StripAccents&) const {
    each_character(text_, [](char32_t c, std::string& out) {
      if (!is_mark(c)) utf8::append(out, c);
    });
  }
  void operator()(const Nmt&) const {
    each_character(text_, [](char32_t c, std::string& out) {
      if (!nmt_removes(c)) utf8::append(out, nmt_blanks(c) ? U' ' : c);
    });
  }
  void operator()(const Strip& step) const {
    std::string_view rest = text_.bytes;
    while (step.right && !rest.empty() && utf8::is_white_space(utf8::last(rest).code_point))
      rest.remove_suffix(utf8::last(rest).length);
    while (step.left && !rest.empty() && utf8::is_white_space(utf8::step(rest, 0).code_point))
      rest.remove_prefix(utf8::step(rest, 0).length);
    const auto n_cut = static_cast<std::size_t>(rest.data() - text_.bytes.data());
    text_ = {std::string(rest), text_.n_first > n_cut ? text_.n_first - n_cut : 0};
  }
  void operator()(const Prepend& step) const {
    if (text_.bytes.empty()) return;
    require_size(text_.bytes.size() + step.content.size(), limit_);
    text_.bytes.insert(0, step.content);
    if (text_.n_first > 0) text_.n_first += step.content.size();
  }
  void operator()(const Replace& step) const {
    std::string out;
    std::size_t n_first = 0;
    for (const SplitPattern::Span& span : step.pattern.spans(text_.bytes)) {
      const std::string_view kept =
          std::string_view(text_.bytes).substr(span.begin, span.end - span.begin);
      require_size(out.size() + std::max(kept.size(), step.content.size()), limit_);
      if (!span.is_match && span.begin < text_.n_first)
        n_first = out.size() + std::min(kept.size(), text_.n_first - span.begin);
      out += span.is_match ? std::string_view(step.content) : kept;
      if (span.is_match && span.end <= text_.n_first) n_first = out.size();
    }
    text_ = {std::move(out), n_first};
  }
  void operator()(const Bert& step) const {
    if (step.clean_text) clean();
    if (step.handle_chinese_chars) {
      each_character(text_, [](char32_t c, std::string& out) {
        const bool alone = is_chinese(c);
        if (alone) out += ' ';
        utf8::append(out, c);
        if (alone) out += ' ';
      });
    }
    if (step.strip_accents) {
      (*this)(Unicode{NormalizationForm::nfd});
      each_character(text_, [](char32_t c, std::string& out) {
        if (!is_nonspacing_mark(c)) utf8::append(out, c);
      });
    }
    if (step.lowercase) (*this)(Lowercase{});
  }

 private:
  std::string_view first_characters() const {
    return std::string_view(text_.bytes).substr(0, text_.n_first);
  }
  void clean() const {
    each_character(text_, [](char32_t c, std::string& out) {
      const bool blank = c == '\t' || c == '\n' || c == '\r' || utf8::is_white_space(c);
      if (c == '\t' || c == '\n' || c == '\r' || !is_control(c))
        utf8::append(out, blank ? U' ' : c);
    });
  }

  Text& text_;
  std::size_t limit_;
};

Bert read_bert(StrictObject& object) {
  Bert bert{.clean_text = object.required_bool("clean_text"),
            .handle_chinese_chars = object.required_bool("handle_chinese_chars"),
            .lowercase = object.required_bool("lowercase")};
  bert.strip_accents = object.bool_or("strip_accents", bert.lowercase);
  return bert;
}

std::optional<NormalizationForm> form_named(std::string_view name) {
  constexpr std::array kForms = {
      std::pair{"NFC", NormalizationForm::nfc}, std::pair{"NFD", NormalizationForm::nfd},
      std::pair{"NFKC", NormalizationForm::nfkc}, std::pair{"NFKD", NormalizationForm::nfkd}};
  for (const auto& [known, form] : kForms) {
    if (name == known) return form;
  }
  return std::nullopt;
}

std::optional<Step> read_step(const std::string& type, StrictObject& object) {
  if (const auto form = form_named(type)) return Unicode{*form};
  if (type == "Lowercase") return Lowercase{};
  if (type == "StripAccents") return StripAccents{};
  if (type == "Nmt") return Nmt{};
  if (type == "Strip")
    return Strip{object.required_bool("strip_left"), object.required_bool("strip_right")};
  if (type == "Replace") return Replace{read_pattern(object), object.required_string("content")};
  if (type == "Prepend") return Prepend{object.required_string("prepend")};
  if (type == "BertNormalizer") return read_bert(object);
  return std::nullopt;
}

}  // namespace

Normalizer Normalizer::read(const json& value, const std::string& where) {
  Normalizer normalizer;
  normalizer.add(value, where);
  return normalizer;
}

void Normalizer::add(const json& value, const std::string& where) {
  StrictObject object(value, where);
  const std::string& type = object.required_string("type");
  if (type == "Sequence") {
    for (const Part& part : parts_of(object, "normalizers")) add(part.value, part.where);
  } else if (auto step = read_step(type, object)) {
    steps_.push_back(std::move(*step));
  } else {
    refuse_type(where, type, kAllowed);
  }
  object.finish();
}

void Normalizer::apply(Text& text) const {
  const std::size_t limit = kFreeGrowth_bytes + kMaxGrowth * text.bytes.size();
  for (const Step& step : steps_) {
    std::visit(Apply(text, limit), step);
    require_size(text.bytes.size(), limit);
  }
}

}  // namespace lenscpp::tokenizing
