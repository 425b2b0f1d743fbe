// The pipeline: added tokens are cut out, the rest is normalized and split into words, words become
// tokens.
#include "hooks/tokenizer/tokenizer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <deque>
#include <fstream>
#include <iterator>
#include <limits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "hooks/tokenizer/added_tokens.h"
#include "hooks/tokenizer/byte_alphabet.h"
#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/tokenizer_file.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp {

using tokenizing::AddedToken;
using tokenizing::Piece;
using tokenizing::refuse;
using tokenizing::TokenId;

namespace {

// What is known of one token when decoding.
struct TokenText {
  std::string spelling;
  std::string bytes;
  bool special = false;
};

// An added token as it is looked for: before the normalizer, or after it, and then normalized.
std::string sought(const tokenizing::Normalizer& normalizer, const AddedToken& token,
                   const std::string& origin) {
  if (!token.normalized) return token.content;
  tokenizing::Text text{token.content, 0};
  normalizer.apply(text);
  if (text.bytes.empty())
    refuse(origin, fmt::format("the normalizer leaves nothing of the added token {}",
                               tokenizing::in_quotes(token.content)));
  return std::move(text.bytes);
}

// The tokens that are looked for in one pass. Of equal ones a special one counts.
std::vector<AddedToken> tokens_of_pass(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> chosen;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(chosen),
               [&](const AddedToken& token) { return token.normalized == normalized; });
  std::stable_partition(chosen.begin(), chosen.end(),
                        [](const AddedToken& token) { return token.special; });
  return chosen;
}

// `tokens` as they are sought: that is how `tokenizers` gives them back, and a special token that
// the normalizer changed is then special no more.
std::unordered_map<TokenId, TokenText> texts_of(const tokenizing::TokenizerFile& file,
                                                const std::vector<AddedToken>& tokens) {
  std::unordered_set<std::string_view> specials;
  for (const AddedToken& token : file.added_tokens) {
    if (token.special) specials.insert(token.content);
  }
  std::unordered_map<TokenId, TokenText> texts;
  for (const auto& [spelling, id] : file.vocabulary)
    texts[id] = {spelling, byte_alphabet::unspell(spelling), false};
  for (const AddedToken& token : tokens)
    texts[token.id] = {token.content, byte_alphabet::unspell(token.content),
                       specials.contains(token.content)};
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

}  // namespace

struct Tokenizer::Tables {
  std::string source_bytes_hash;
  tokenizing::TokenizerFile file;
  tokenizing::SpecialTokens special;
  tokenizing::AddedTokenMatcher raw_tokens;
  tokenizing::AddedTokenMatcher normalized_tokens;
  std::unordered_map<TokenId, TokenText> texts;
  std::unordered_map<std::string_view, TokenId> ids;  // by spelling, into `file`
  std::int64_t id_limit = 0;

  Piece normalized(Piece stretch, std::deque<std::string>& changed) const {
    if (file.normalizer.empty()) return stretch;
    tokenizing::Text text{std::string(stretch.text), stretch.n_first};
    file.normalizer.apply(text);
    return {changed.emplace_back(std::move(text.bytes)), text.n_first};
  }
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
  std::vector<AddedToken> tokens = file.added_tokens;
  for (AddedToken& token : tokens) token.content = sought(file.normalizer, token, name);
  auto raw_tokens = tokenizing::AddedTokenMatcher(tokens_of_pass(tokens, false));
  auto normalized_tokens = tokenizing::AddedTokenMatcher(tokens_of_pass(tokens, true));
  auto texts = texts_of(file, tokens);
  auto tables = std::make_shared<Tables>(Tables{xxh3_128(json),
                                                std::move(file),
                                                special,
                                                std::move(raw_tokens),
                                                std::move(normalized_tokens),
                                                std::move(texts),
                                                {},
                                                0});
  for (const auto& [spelling, id] : tables->file.vocabulary) tables->ids.emplace(spelling, id);
  for (const AddedToken& token : tables->file.added_tokens)
    tables->ids.insert_or_assign(token.content, token.id);
  for (const auto& [id, text] : tables->texts)
    tables->id_limit = std::max(tables->id_limit, std::int64_t{id} + 1);
  return Tokenizer(std::move(tables));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view utf8) const {
  if (utf8.size() > std::numeric_limits<std::int32_t>::max())
    refuse("encode", fmt::format("{} bytes; allowed: below 2^31", utf8.size()));
  if (const auto at = utf8::first_invalid(utf8))
    refuse("encode", fmt::format("the text is not UTF-8 at byte {}", *at));
  const auto encoder = tokenizing::make_encoder(tables_->file.model);
  std::deque<std::string> changed;  // words that are no part of the text, as long as the encoder
  std::vector<std::int64_t> ids;
  for (const auto& outer : tables_->raw_tokens.split(utf8)) {
    if (outer.id) {
      ids.push_back(*outer.id);
      continue;
    }
    const bool starts = outer.text.data() == utf8.data();
    Piece stretch{outer.text, starts ? utf8::step(utf8, 0).length : 0};
    stretch = tables_->normalized(stretch, changed);
    for (const auto& inner : tables_->normalized_tokens.split(stretch.text)) {
      if (inner.id) {
        ids.push_back(*inner.id);
        continue;
      }
      const auto before = static_cast<std::size_t>(inner.text.data() - stretch.text.data());
      const std::size_t n_first = stretch.n_first > before ? stretch.n_first - before : 0;
      for (const Piece& word : tables_->file.pre_tokenizer.words({inner.text, n_first}, changed))
        encoder->append(word.text, ids);
    }
  }
  return ids;
}

SpecialEncoding Tokenizer::encode_with_special(std::string_view utf8) const {
  return tables_->file.post_processor.apply(encode(utf8));
}

SpecialEncoding Tokenizer::encode_with_special(std::string_view first,
                                               std::string_view second) const {
  return tables_->file.post_processor.apply(encode(first), encode(second));
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids, bool skip_special) const {
  const bool bytes_suffice = tables_->file.decoder.is_byte_level();
  std::string bytes;
  std::vector<std::string> spellings;
  for (const std::int64_t id : ids) {
    const TokenText& text = tables_->text(id);
    if (skip_special && text.special) continue;
    if (bytes_suffice) {
      bytes += text.bytes;
    } else {
      spellings.push_back(text.spelling);
    }
  }
  if (bytes_suffice) return utf8::replace_invalid(bytes);
  return tables_->file.decoder.decode(std::move(spellings));
}

std::string Tokenizer::token(std::int64_t id) const { return decode(std::span(&id, 1)); }

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

std::optional<std::int64_t> Tokenizer::pad_token_id() const { return tables_->special.pad; }

const std::string& Tokenizer::source_bytes_hash() const { return tables_->source_bytes_hash; }

}  // namespace lenscpp
