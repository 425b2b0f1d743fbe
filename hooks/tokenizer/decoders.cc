// Each step as decode_chain of the class of its name in `tokenizers` has it.
#include "hooks/tokenizer/decoders.h"

#include <fmt/format.h>

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/components.h"
#include "hooks/tokenizer/json_document.h"
#include "hooks/tokenizer/pre_tokenizers.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

using namespace decoding;
using nlohmann::json;
using Tokens = std::vector<std::string>;

constexpr std::string_view kAllowed =
    "BPEDecoder, ByteFallback, ByteLevel, Fuse, Metaspace, Replace, Sequence, Strip, WordPiece";
constexpr std::size_t kMaxGrowth = 32;
constexpr std::size_t kFreeGrowth_bytes = 65536;

std::string replaced(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (std::size_t at = text.find(from); at != std::string_view::npos; at = text.find(from)) {
    out += text.substr(0, at);
    out += to;
    text.remove_prefix(at + from.size());
  }
  return out += text;
}

std::string joined(const Tokens& tokens, std::string_view between) {
  std::string out;
  for (const std::string& token : tokens) {
    if (&token != &tokens.front()) out += between;
    out += token;
  }
  return out;
}

// Spaces before punctuation and English contractions go, in the order of `tokenizers`.
std::string cleaned_up(std::string text) {
  constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kRules = {
      {{" .", "."},
       {" ?", "?"},
       {" !", "!"},
       {" ,", ","},
       {" ' ", "'"},
       {" n't", "n't"},
       {" 'm", "'m"},
       {" do not", " don't"},
       {" 's", "'s"},
       {" 've", "'ve"},
       {" 're", "'re"}}};
  if (text.find(' ') == std::string::npos) return text;
  for (const auto& [from, to] : kRules) text = replaced(text, from, to);
  return text;
}

// The byte of "<0x41>", read as Rust's u8::from_str_radix reads it: "+f" is 15.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  std::string_view digits = token.substr(3, 2);
  if (digits[0] == '+') digits.remove_prefix(1);
  unsigned byte = 0;
  for (const char c : digits) {
    const std::size_t value = std::string_view("0123456789abcdef")
                                  .find(c >= 'A' && c <= 'F' ? static_cast<char>(c + 0x20) : c);
    if (value == std::string_view::npos) return std::nullopt;
    byte = byte * 16 + static_cast<unsigned>(value);
  }
  return static_cast<char>(byte);
}

struct Apply {
  Tokens tokens;
  std::size_t limit;

  Tokens operator()(const ByteLevel&) {
    std::string bytes;
    for (const std::string& token : tokens) bytes += byte_alphabet::unspell(token);
    return {utf8::replace_invalid(bytes)};
  }
  Tokens operator()(const ByteFallback&) {
    Tokens out;
    std::string bytes;
    const auto flush = [&] {
      if (bytes.empty()) return;
      if (utf8::first_invalid(bytes)) {
        out.insert(out.end(), bytes.size(), "\uFFFD");
      } else {
        out.push_back(bytes);
      }
      bytes.clear();
    };
    for (std::string& token : tokens) {
      if (const auto byte = fallback_byte(token)) {
        bytes += *byte;
        continue;
      }
      flush();
      out.push_back(std::move(token));
    }
    flush();
    return out;
  }
  Tokens operator()(const Fuse&) { return {joined(tokens, "")}; }
  Tokens operator()(const WordPiece& step) {
    for (std::string& token : tokens) {
      if (&token != &tokens.front()) {
        if (token.starts_with(step.prefix)) {
          token.erase(0, step.prefix.size());
        } else {
          token.insert(0, " ");
        }
      }
      if (step.cleanup) token = cleaned_up(std::move(token));
    }
    return std::move(tokens);
  }
  Tokens operator()(const Metaspace& step) {
    for (std::string& token : tokens) {
      const bool drops = step.drops_first && &token == &tokens.front();
      token = replaced(token, step.replacement, drops ? "" : " ");
    }
    return std::move(tokens);
  }
  Tokens operator()(const Strip& step) {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::size_t n = 0; n < step.start && rest.starts_with(step.content); ++n)
        rest.remove_prefix(step.content.size());
      for (std::size_t n = 0; n < step.stop && rest.ends_with(step.content); ++n)
        rest.remove_suffix(step.content.size());
      token = std::string(rest);
    }
    return std::move(tokens);
  }
  Tokens operator()(const Replace& step) {
    std::size_t n_bytes = 0;
    for (std::string& token : tokens) {
      std::string out;
      for (const SplitPattern::Span& span : step.pattern.spans(token)) {
        out += span.is_match ? step.content : token.substr(span.begin, span.end - span.begin);
        if (n_bytes + out.size() > limit)
          refuse("decode",
                 fmt::format("the decoder makes more than {} bytes, 32 times what came in", limit));
      }
      token = std::move(out);
      n_bytes += token.size();
    }
    return std::move(tokens);
  }
  Tokens operator()(const Bpe& step) {
    for (std::string& token : tokens)
      token = replaced(token, step.suffix, &token == &tokens.back() ? "" : " ");
    return std::move(tokens);
  }
};

std::size_t read_count(StrictObject& object, std::string_view key) {
  const json& value = object.required(key);
  if (!value.is_number_unsigned())
    refuse(object.where(), fmt::format("\"{}\" is {}; allowed: 0, 1, ...", key, describe(value)));
  return value.get<std::size_t>();
}

Step read_byte_level(StrictObject& object) {
  for (const std::string_view key : {"add_prefix_space", "trim_offsets", "use_regex"})
    object.bool_or(key, true);  // the decoder of `tokenizers` reads none of them
  return ByteLevel{};
}

Step read_metaspace(StrictObject& object) {
  Metaspace step{
      .replacement = one_character(object, "replacement"),
      .drops_first = read_prepend_scheme(object) != pre_tokenizing::PrependScheme::never};
  object.bool_or("split", true);  // of the pre-tokenizer of that name
  object.optional("str_rep");
  return step;
}

Step read_bpe(StrictObject& object) {
  Bpe step{object.required_string("suffix")};
  if (step.suffix.empty()) refuse(object.where(), "\"suffix\" is empty");
  return step;
}

std::optional<Step> read_step(const std::string& type, StrictObject& object) {
  if (type == "ByteLevel") return read_byte_level(object);
  if (type == "ByteFallback") return ByteFallback{};
  if (type == "Fuse") return Fuse{};
  if (type == "WordPiece")
    return WordPiece{object.required_string("prefix"), object.required_bool("cleanup")};
  if (type == "Metaspace") return read_metaspace(object);
  if (type == "Strip")
    return Strip{one_character(object, "content"), read_count(object, "start"),
                 read_count(object, "stop")};
  if (type == "Replace") return Replace{read_pattern(object), object.required_string("content")};
  if (type == "BPEDecoder") return read_bpe(object);
  return std::nullopt;
}

}  // namespace

Decoder Decoder::read(const json& value, const std::string& where) {
  Decoder decoder;
  decoder.exists_ = true;
  decoder.add(value, where);
  return decoder;
}

void Decoder::add(const json& value, const std::string& where) {
  StrictObject object(value, where);
  const std::string& type = object.required_string("type");
  if (type == "Sequence") {
    for (const Part& part : parts_of(object, "decoders")) add(part.value, part.where);
  } else if (auto step = read_step(type, object)) {
    steps_.push_back(std::move(*step));
  } else {
    refuse_type(where, type, kAllowed);
  }
  object.finish();
}

bool Decoder::is_byte_level() const {
  return steps_.size() == 1 && std::holds_alternative<ByteLevel>(steps_.front());
}

std::string Decoder::decode(std::vector<std::string> spellings) const {
  std::size_t n_bytes = 0;
  for (const std::string& spelling : spellings) n_bytes += spelling.size();
  const std::size_t limit = kFreeGrowth_bytes + kMaxGrowth * n_bytes;
  for (const Step& step : steps_) spellings = std::visit(Apply{std::move(spellings), limit}, step);
  return joined(spellings, exists_ ? "" : " ");
}

}  // namespace lenscpp::tokenizing
