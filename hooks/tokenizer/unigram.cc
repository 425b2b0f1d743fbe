// The forward pass is encode_optimized of `tokenizers`: the same sums in the same order, so that
// ties fall alike.
#include "hooks/tokenizer/unigram.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

constexpr double kUnknownPenalty = 10.0;

double lowest_score(const std::vector<ScoredToken>& tokens) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const ScoredToken& token : tokens) lowest = std::min(lowest, token.score);
  return lowest;
}

}  // namespace

UnigramModel::UnigramModel(std::vector<ScoredToken> scored, const Vocabulary& vocabulary,
                           std::optional<TokenId> unknown_token, bool has_byte_fallback)
    : tokens(std::move(scored)),
      ids(vocabulary),
      unknown_score(lowest_score(tokens) - kUnknownPenalty),
      unknown(unknown_token),
      byte_fallback(has_byte_fallback),
      fallback_tokens(fallback_tokens_of(vocabulary)) {
  for (const auto& [spelling, id] : ids) trie.insert(spelling, id);
}

void UnigramEncoder::consider(std::size_t begin, std::size_t end, std::uint32_t token,
                              double score) {
  Best& best = best_[end];
  const double total = score + best_[begin].score;
  if (!best.reached || total > best.score) best = {total, token, begin, true};
}

void UnigramEncoder::find_paths(std::string_view word) {
  best_.assign(word.size() + 1, {});
  for (std::size_t begin = 0; begin < word.size();) {
    const std::size_t n_character = utf8::step(word, begin).length;
    bool has_single = false;
    std::uint32_t node = ByteTrie::kRoot;
    for (std::size_t end = begin; end < word.size();) {
      node = model_.trie.child(node, word[end++]);
      if (node == ByteTrie::kNone) break;
      const std::uint32_t token = model_.trie.token(node);
      if (token == ByteTrie::kNone) continue;
      consider(begin, end, token, model_.tokens[token].score);
      has_single = has_single || end == begin + n_character;
    }
    if (!has_single) {
      if (!model_.unknown)
        refuse("encode", fmt::format("character {} in {} has no token in the vocabulary",
                                     in_quotes(word.substr(begin, n_character)), in_quotes(word)));
      consider(begin, begin + n_character, *model_.unknown, model_.unknown_score);
    }
    begin += n_character;
  }
}

void UnigramEncoder::encode(std::string_view word, std::vector<std::int64_t>& ids) {
  find_paths(word);
  ends_.clear();
  for (std::size_t end = word.size(); end > 0; end = best_[end].begin) ends_.push_back(end);
  std::size_t unknown_from = word.size();  // neighbours that are unknown are one stretch
  for (auto end = ends_.rbegin(); end != ends_.rend(); ++end) {
    const Best& best = best_[*end];
    if (best.token == model_.unknown) {
      unknown_from = std::min(unknown_from, best.begin);
      continue;
    }
    if (unknown_from < best.begin)
      append_unknown(word.substr(unknown_from, best.begin - unknown_from), ids);
    unknown_from = word.size();
    ids.push_back(best.token);
  }
  if (unknown_from < word.size()) append_unknown(word.substr(unknown_from), ids);
}

// A stretch that happens to be spelled like a token is that token.
void UnigramEncoder::append_unknown(std::string_view stretch,
                                    std::vector<std::int64_t>& ids) const {
  const auto token = [this](char byte) {
    return model_.fallback_tokens[static_cast<std::uint8_t>(byte)];
  };
  const auto has_token = [&](char byte) { return token(byte).has_value(); };
  if (const auto whole = model_.ids.find(stretch); whole != model_.ids.end()) {
    ids.push_back(whole->second);
  } else if (model_.byte_fallback && std::all_of(stretch.begin(), stretch.end(), has_token)) {
    for (const char byte : stretch) ids.push_back(*token(byte));
  } else {
    ids.push_back(*model_.unknown);
  }
}

}  // namespace lenscpp::tokenizing
