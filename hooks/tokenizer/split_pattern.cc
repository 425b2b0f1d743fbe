// Matching with PCRE2: compiled once, just in time where the processor allows, shared by threads.
#include "hooks/tokenizer/split_pattern.h"

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <utility>

#include "hooks/tokenizer/code_points.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/unicode_extras.h"

namespace lenscpp::tokenizing {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string message_of(int error) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(error, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

// A bound on backtracking: a hostile pattern must end in an exception, not in hours.
constexpr std::uint32_t kMatchLimit = 20'000'000;
constexpr std::uint32_t kHeapLimit_kib = 256 * 1024;

std::string word_class() {
  return fmt::format("\\p{{Alphabetic}}\\p{{M}}\\p{{Nd}}\\p{{Pc}}\\p{{Join_Control}}{}",
                     unicode_extras::kWord);
}

PCRE2_SPTR units(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

struct SplitPattern::Compiled {
  std::unique_ptr<pcre2_code, FreeCode> code;
  std::string where;
};

namespace {

// What one search needs besides the pattern; made for each call, so that patterns can be shared.
class Search {
 public:
  Search(const pcre2_code* code, std::string_view text, std::string_view where)
      : code_(code),
        text_(text),
        where_(where),
        match_(pcre2_match_data_create(1, nullptr)),
        context_(pcre2_match_context_create(nullptr)) {
    if (!match_ || !context_) throw std::bad_alloc();
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    pcre2_set_heap_limit(context_.get(), kHeapLimit_kib);
  }

  /// Finds the first match at or after byte `from`.
  bool next(std::size_t from) {
    // NOTEMPTY cannot matter after compile()'s check; with it no search can fail to advance.
    constexpr std::uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int found = run(from, kOptions);
    // The JIT's stack is small and fixed; the interpreter's grows on the heap.
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) found = run(from, kOptions | PCRE2_NO_JIT);
    if (found == PCRE2_ERROR_NOMATCH) return false;
    if (found < 0) refuse(where_, fmt::format("the pattern gave up: {}", message_of(found)));
    return true;
  }
  std::size_t begin() const { return pcre2_get_ovector_pointer(match_.get())[0]; }
  std::size_t end() const { return pcre2_get_ovector_pointer(match_.get())[1]; }

 private:
  int run(std::size_t from, std::uint32_t options) {
    return pcre2_match(code_, units(text_), text_.size(), from, options, match_.get(),
                       context_.get());
  }
  const pcre2_code* code_;
  std::string_view text_;
  std::string_view where_;
  std::unique_ptr<pcre2_match_data, FreeMatch> match_;
  std::unique_ptr<pcre2_match_context, FreeContext> context_;
};

using Spans = std::vector<SplitPattern::Span>;

// Joins each match to the span before it, unless that is a match as well.
Spans merge_with_previous(const Spans& spans) {
  Spans out;
  bool previous_is_match = false;
  for (const SplitPattern::Span& span : spans) {
    if (span.is_match && !previous_is_match && !out.empty()) {
      out.back().end = span.end;
    } else {
      out.push_back(span);
    }
    previous_is_match = span.is_match;
  }
  return out;
}

Spans merge_with_next(const Spans& spans) {
  Spans out;
  bool previous_is_match = false;
  for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
    if (span->is_match && !previous_is_match && !out.empty()) {
      out.back().begin = span->begin;
    } else {
      out.push_back(*span);
    }
    previous_is_match = span->is_match;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

// Joins neighbours of the same kind.
Spans merge_contiguous(const Spans& spans) {
  Spans out;
  for (const SplitPattern::Span& span : spans) {
    if (!out.empty() && out.back().is_match == span.is_match) {
      out.back().end = span.end;
    } else {
      out.push_back(span);
    }
  }
  return out;
}

Spans apply(Spans spans, SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::isolated:
      return spans;
    case SplitBehavior::removed:
      std::erase_if(spans, [](const SplitPattern::Span& span) { return span.is_match; });
      return spans;
    case SplitBehavior::merged_with_previous:
      return merge_with_previous(spans);
    case SplitBehavior::merged_with_next:
      return merge_with_next(spans);
    case SplitBehavior::contiguous:
      return merge_contiguous(spans);
  }
  refuse("split", "behavior out of range");
}

}  // namespace

SplitPattern::SplitPattern(std::shared_ptr<const Compiled> compiled)
    : compiled_(std::move(compiled)) {}

SplitPattern SplitPattern::compile(const std::string& pcre_pattern, std::string_view where) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  std::unique_ptr<pcre2_code, FreeCode> code(pcre2_compile(
      units(pcre_pattern), pcre_pattern.size(), PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr));
  if (!code) refuse(where, fmt::format("the pattern does not compile: {}", message_of(error)));
  std::uint32_t matches_empty = 0;
  pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty != 0)
    refuse(where, "the pattern can match the empty string; allowed: only non-empty matches");
  // Without a just-in-time compiler for this processor the interpreter does the same, slower.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return SplitPattern(
      std::make_shared<const Compiled>(Compiled{std::move(code), std::string(where)}));
}

SplitPattern SplitPattern::from_regex(std::string_view onig_pattern, std::string_view where) {
  return compile(translate_pattern(onig_pattern, where), where);
}

SplitPattern SplitPattern::from_literal(std::string_view text, std::string_view where) {
  if (text.empty()) refuse(where, "the pattern is empty");
  std::string escaped;
  for (const char c : text) {
    const bool special = std::string_view("\\^$.[]|()?*+{}#-").find(c) != std::string_view::npos;
    if (special) escaped += '\\';
    escaped += c;
  }
  return compile(escaped, where);
}

SplitPattern SplitPattern::one_digit() {
  return compile(fmt::format("[\\p{{N}}{}]", unicode_extras::kDigits), "Digits");
}

SplitPattern SplitPattern::one_word_character() {
  return compile(fmt::format("[{}]", word_class()), "single_word");
}

SplitPattern SplitPattern::one_punctuation() {
  return compile(fmt::format("[{}]", punctuation_class()), "Punctuation");
}

SplitPattern SplitPattern::one_white_space() {
  return compile(fmt::format("[{}]", kWhiteSpaceClass), "WhitespaceSplit");
}

SplitPattern SplitPattern::words_and_symbols() {
  return compile(fmt::format("[{0}]+|[^{0}{1}]+", word_class(), kWhiteSpaceClass), "Whitespace");
}

std::vector<SplitPattern::Span> SplitPattern::spans(std::string_view text) const {
  std::vector<Span> out;
  Search search(compiled_->code.get(), text, compiled_->where);
  std::size_t covered = 0;
  while (covered < text.size() && search.next(covered)) {
    if (covered != search.begin()) out.push_back({covered, search.begin(), false});
    out.push_back({search.begin(), search.end(), true});
    covered = search.end();
  }
  if (covered != text.size()) out.push_back({covered, text.size(), false});
  return out;
}

std::vector<std::string_view> SplitPattern::split(std::string_view text, SplitBehavior behavior,
                                                  bool invert) const {
  Spans matched = spans(text);
  if (invert) {
    for (Span& span : matched) span.is_match = !span.is_match;
  }
  std::vector<std::string_view> parts;
  for (const Span& span : apply(std::move(matched), behavior)) {
    parts.push_back(text.substr(span.begin, span.end - span.begin));
  }
  return parts;
}

}  // namespace lenscpp::tokenizing
