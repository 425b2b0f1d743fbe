// The same order of steps as `AddedVocabulary::find_matches` of `tokenizers`, with its corner
// cases: a match that is no single word is passed over whole, and rstrip may reach over the next
// match.
#include "hooks/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

std::uint64_t edge(std::uint32_t node, char byte) {
  return (static_cast<std::uint64_t>(node) << 8U) | static_cast<std::uint8_t>(byte);
}

std::size_t without_space_at_end(std::string_view text) {
  while (!text.empty()) {
    const utf8::Step last = utf8::last(text);
    if (!utf8::is_white_space(last.code_point)) break;
    text.remove_suffix(last.length);
  }
  return text.size();
}

std::size_t space_at_start(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const utf8::Step s = utf8::step(text, at);
    if (!utf8::is_white_space(s.code_point)) break;
    at += s.length;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)),
      ends_{nullptr},
      word_character_(SplitPattern::one_word_character()) {
  for (const AddedToken& token : tokens_) {
    std::uint32_t node = 0;
    for (const char byte : token.content) {
      const auto next = static_cast<std::uint32_t>(ends_.size());
      const auto [child, is_new] = children_.emplace(edge(node, byte), next);
      if (is_new) ends_.push_back(nullptr);
      node = child->second;
    }
    if (ends_[node] == nullptr) ends_[node] = &token;
    starts_a_token_[static_cast<std::uint8_t>(token.content[0])] = true;
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, std::size_t at) const {
  const AddedToken* longest = nullptr;
  std::uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto child = children_.find(edge(node, text[at]));
    if (child == children_.end()) break;
    node = child->second;
    if (ends_[node] != nullptr) longest = ends_[node];
  }
  return longest;
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::find(std::string_view text,
                                                                std::size_t from) const {
  for (; from < text.size(); ++from) {
    if (!starts_a_token_[static_cast<std::uint8_t>(text[from])]) continue;
    if (const AddedToken* token = longest_at(text, from))
      return Match{from, from + token->content.size(), token};
  }
  return std::nullopt;
}

bool AddedTokenMatcher::stands_alone(std::string_view text, const Match& match) const {
  const auto is_word = [this](std::string_view character) {
    return word_character_.spans(character).front().is_match;
  };
  const std::string_view before = text.substr(0, match.begin);
  const std::string_view after = text.substr(match.end);
  if (!before.empty() && is_word(before.substr(before.size() - utf8::last(before).length)))
    return false;
  return after.empty() || !is_word(after.substr(0, utf8::step(after, 0).length));
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text) const {
  std::vector<Piece> pieces;
  std::size_t covered = 0;
  for (auto match = find(text, 0); match; match = find(text, match->end)) {
    if (match->token->single_word && !stands_alone(text, *match)) continue;
    std::size_t begin = match->begin;
    std::size_t end = match->end;
    if (match->token->lstrip)
      begin = std::max(without_space_at_end(text.substr(0, begin)), covered);
    // The white space that this is made of went to the match before: nothing is left of it.
    if (begin > end) continue;
    if (match->token->rstrip) end += space_at_start(text.substr(end));
    if (covered < begin) pieces.push_back({text.substr(covered, begin - covered), std::nullopt});
    if (begin != end) pieces.push_back({text.substr(begin, end - begin), match->token->id});
    covered = end;
  }
  if (covered != text.size()) pieces.push_back({text.substr(covered), std::nullopt});
  return pieces;
}

}  // namespace lenscpp::tokenizing
