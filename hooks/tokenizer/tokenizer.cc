// The pipeline: added tokens are cut out, the rest is split into words, words are merged.
#include "hooks/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <iterator>
#include <limits>
#include <unordered_map>
#include <utility>

#include "hooks/tokenizer/added_tokens.h"
#include "hooks/tokenizer/bpe.h"
#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/tokenizer_file.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp {

using tokenizing::AddedToken;
using tokenizing::refuse;
using tokenizing::TokenId;

namespace {

// What is known of one token when decoding.
struct TokenText {
  std::string spelling;
  std::string bytes;
  bool special = false;
};

std::vector<AddedToken> tokens_of_pass(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> chosen;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(chosen),
               [&](const AddedToken& token) { return token.normalized == normalized; });
  return chosen;
}

std::unordered_map<TokenId, TokenText> texts_of(const tokenizing::TokenizerFile& file) {
  std::unordered_map<TokenId, TokenText> texts;
  for (const auto& [spelling, id] : file.vocabulary)
    texts[id] = {spelling, byte_alphabet::unspell(spelling), false};
  for (const AddedToken& token : file.added_tokens)
    texts[token.id] = {token.content, byte_alphabet::unspell(token.content), token.special};
  return texts;
}

std::string xxh3_128(std::string_view bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string read_bytes(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) refuse(path.string(), "no such file");
  std::ifstream stream(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  if (!stream) refuse(path.string(), "the file cannot be read");
  return bytes;
}

// Text on its way through the pre-tokenizer: words as views into the text, or into copies that
// start with a space, which live as long as this does.
class WordSplitter {
 public:
  explicit WordSplitter(const tokenizing::PreTokenizer& steps) : steps_(steps) {}

  std::vector<std::string_view> words(std::string_view text) {
    std::vector<std::string_view> parts{text};
    for (const tokenizing::SplitStep& step : steps_.splits) {
      parts = each(parts, [&](std::string_view part) {
        return step.pattern.split(part, step.behavior, step.invert);
      });
    }
    if (steps_.add_prefix_space) {
      for (std::string_view& part : parts) part = with_prefix_space(part);
    }
    if (!steps_.last_split) return parts;
    return each(parts, [&](std::string_view part) {
      return steps_.last_split->split(part, tokenizing::SplitBehavior::isolated, false);
    });
  }

 private:
  template <class Split>
  static std::vector<std::string_view> each(const std::vector<std::string_view>& parts,
                                            const Split& split) {
    if (parts.size() == 1) return split(parts.front());
    std::vector<std::string_view> out;
    for (const std::string_view part : parts) {
      const auto pieces = split(part);
      out.insert(out.end(), pieces.begin(), pieces.end());
    }
    return out;
  }
  std::string_view with_prefix_space(std::string_view part) {
    if (part.starts_with(' ')) return part;
    return prefixed_.emplace_back(fmt::format(" {}", part));
  }

  const tokenizing::PreTokenizer& steps_;
  std::deque<std::string> prefixed_;
};

}  // namespace

struct Tokenizer::Tables {
  std::string source_bytes_hash;
  tokenizing::TokenizerFile file;
  tokenizing::SpecialTokens special;
  tokenizing::AddedTokenMatcher raw_tokens;
  tokenizing::AddedTokenMatcher normalized_tokens;
  std::unordered_map<TokenId, TokenText> texts;
  std::unordered_map<std::string_view, TokenId> ids;  // by spelling, into `texts`
  std::int64_t id_limit = 0;

  const TokenText& text(std::int64_t id) const {
    const TokenText* found = find(id);
    if (found == nullptr)
      refuse("decode", fmt::format("id {} is no token; allowed: {} ids below {}", id, texts.size(),
                                   id_limit));
    return *found;
  }
  const TokenText* find(std::int64_t id) const {
    if (id < 0 || id >= id_limit) return nullptr;
    const auto found = texts.find(static_cast<TokenId>(id));
    return found == texts.end() ? nullptr : &found->second;
  }
};

Tokenizer::Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}

Tokenizer Tokenizer::from_file(const std::filesystem::path& path) {
  const std::string json = read_bytes(path);
  const std::filesystem::path config = path.parent_path() / "tokenizer_config.json";
  if (!std::filesystem::exists(config)) return from_json(json, path.string());
  return from_json(json, path.string(), read_bytes(config));
}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view origin,
                               std::optional<std::string_view> config_json) {
  const std::string name(origin);
  tokenizing::TokenizerFile file = tokenizing::read_tokenizer_file(json, name);
  const std::string config_name = name + ", tokenizer_config.json";
  const auto special = config_json
                           ? tokenizing::read_tokenizer_config(*config_json, config_name, file)
                           : tokenizing::default_special_tokens(file);
  auto raw_tokens = tokenizing::AddedTokenMatcher(tokens_of_pass(file.added_tokens, false));
  auto normalized_tokens = tokenizing::AddedTokenMatcher(tokens_of_pass(file.added_tokens, true));
  auto texts = texts_of(file);
  auto tables = std::make_shared<Tables>(Tables{xxh3_128(json),
                                                std::move(file),
                                                special,
                                                std::move(raw_tokens),
                                                std::move(normalized_tokens),
                                                std::move(texts),
                                                {},
                                                0});
  for (const auto& [id, text] : tables->texts) {
    tables->ids.emplace(text.spelling, id);
    tables->id_limit = std::max(tables->id_limit, std::int64_t{id} + 1);
  }
  return Tokenizer(std::move(tables));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view utf8) const {
  if (utf8.size() > std::numeric_limits<std::int32_t>::max())
    refuse("encode", fmt::format("{} bytes; allowed: below 2^31", utf8.size()));
  if (const auto at = utf8::first_invalid(utf8))
    refuse("encode", fmt::format("the text is not UTF-8 at byte {}", *at));
  WordSplitter splitter(tables_->file.pre_tokenizer);
  tokenizing::BpeEncoder encoder(tables_->file.model);
  std::vector<std::int64_t> ids;
  for (const auto& outer : tables_->raw_tokens.split(utf8)) {
    if (outer.id) {
      ids.push_back(*outer.id);
      continue;
    }
    for (const auto& piece : tables_->normalized_tokens.split(outer.text)) {
      if (piece.id) {
        ids.push_back(*piece.id);
        continue;
      }
      for (const std::string_view word : splitter.words(piece.text)) encoder.append(word, ids);
    }
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids, bool skip_special) const {
  std::string bytes;
  for (const std::int64_t id : ids) {
    const TokenText& text = tables_->text(id);
    if (!skip_special || !text.special) bytes += text.bytes;
  }
  return utf8::replace_invalid(bytes);
}

std::string Tokenizer::token(std::int64_t id) const {
  return utf8::replace_invalid(tables_->text(id).bytes);
}

std::optional<std::int64_t> Tokenizer::id(std::string_view spelling) const {
  const auto found = tables_->ids.find(spelling);
  if (found == tables_->ids.end()) return std::nullopt;
  return found->second;
}

const std::string& Tokenizer::spelling(std::int64_t id) const { return tables_->text(id).spelling; }

bool Tokenizer::contains(std::int64_t id) const { return tables_->find(id) != nullptr; }

bool Tokenizer::is_special(std::int64_t id) const {
  const TokenText* text = tables_->find(id);
  return text != nullptr && text->special;
}

std::int64_t Tokenizer::vocab_size() const {
  return static_cast<std::int64_t>(tables_->texts.size());
}

std::int64_t Tokenizer::id_limit() const { return tables_->id_limit; }

std::optional<std::int64_t> Tokenizer::bos_token_id() const { return tables_->special.bos; }

std::optional<std::int64_t> Tokenizer::eos_token_id() const { return tables_->special.eos; }

const std::string& Tokenizer::source_bytes_hash() const { return tables_->source_bytes_hash; }

}  // namespace lenscpp
