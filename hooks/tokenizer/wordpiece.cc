#include "hooks/tokenizer/wordpiece.h"

#include <algorithm>
#include <optional>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

std::size_t n_characters(std::string_view text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80;
  }));
}

struct Match {
  TokenId id = 0;
  std::size_t n_bytes = 0;
};

// The longest token that `text` starts with.
std::optional<Match> longest(const ByteTrie& tokens, std::string_view text) {
  std::optional<Match> match;
  std::uint32_t node = ByteTrie::kRoot;
  for (std::size_t at = 0; at < text.size(); ++at) {
    node = tokens.child(node, text[at]);
    if (node == ByteTrie::kNone) break;
    if (tokens.token(node) != ByteTrie::kNone) match = Match{tokens.token(node), at + 1};
  }
  return match;
}

}  // namespace

WordPieceModel::WordPieceModel(const Vocabulary& vocabulary, std::string_view prefix,
                               TokenId unknown_token, std::size_t max_characters)
    : unknown(unknown_token), max_word_characters(max_characters) {
  for (const auto& [spelling, id] : vocabulary) {
    first.insert(spelling, id);
    const std::string_view rest = std::string_view(spelling).substr(
        spelling.starts_with(prefix) ? prefix.size() : spelling.size());
    if (!rest.empty()) going_on.insert(rest, id);
  }
}

void WordPieceEncoder::encode(std::string_view word, std::vector<std::int64_t>& ids) {
  const std::size_t before = ids.size();
  const bool too_long = n_characters(word) > model_.max_word_characters;
  std::string_view rest = word;
  while (!rest.empty() && !too_long) {
    const ByteTrie& tokens = rest.size() == word.size() ? model_.first : model_.going_on;
    const auto match = longest(tokens, rest);
    if (!match) break;
    ids.push_back(match->id);
    rest.remove_prefix(match->n_bytes);
  }
  if (rest.empty()) return;
  ids.resize(before);
  ids.push_back(model_.unknown);
}

}  // namespace lenscpp::tokenizing
