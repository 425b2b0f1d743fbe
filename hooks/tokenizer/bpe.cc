// Merging with a linked list of symbols and a heap of candidate pairs, so that a word of 10^6 bytes
// is no worse than many short ones. Equal ranks go left to right, as in `tokenizers`.
#include "hooks/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "hooks/tokenizer/refusal.h"
#include "hooks/tokenizer/utf8.h"

namespace lenscpp::tokenizing {
namespace {

std::uint64_t pair_of(TokenId left, TokenId right) {
  return (static_cast<std::uint64_t>(left) << 32U) | right;
}

// The finaliser of splitmix64.
std::uint64_t mixed(std::uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

// The single character that is left of a spelling without prefix and suffix, if it is one.
std::optional<char32_t> character_within(std::string_view spelling, std::string_view prefix,
                                         std::string_view suffix) {
  if (spelling.size() <= prefix.size() + suffix.size() || !spelling.starts_with(prefix) ||
      !spelling.ends_with(suffix))
    return std::nullopt;
  spelling = spelling.substr(prefix.size(), spelling.size() - prefix.size() - suffix.size());
  const utf8::Step s = utf8::step(spelling, 0);
  return s.valid && s.length == spelling.size() ? std::optional(s.code_point) : std::nullopt;
}

}  // namespace

CharacterTokens::CharacterTokens(const Vocabulary& vocabulary, std::string_view prefix,
                                 std::string_view suffix)
    : tables_(prefix.empty() && suffix.empty() ? 1 : 4) {
  for (std::size_t i = 0; i < tables_.size(); ++i) {
    const bool is_first = (i & 1U) != 0, is_last = (i & 2U) != 0;
    for (const auto& [spelling, id] : vocabulary) {
      const auto c = character_within(spelling, is_first ? "" : prefix, is_last ? suffix : "");
      if (!c) continue;
      if (*c < tables_[i].ascii.size()) {
        tables_[i].ascii[*c] = id;
      } else {
        tables_[i].others.emplace(*c, id);
      }
    }
  }
}

std::optional<TokenId> CharacterTokens::find(char32_t c, bool is_first, bool is_last) const {
  if (tables_.empty()) return std::nullopt;
  const std::size_t i = tables_.size() == 1 ? 0 : (is_first ? 1U : 0U) + (is_last ? 2U : 0U);
  if (c < tables_[i].ascii.size()) return tables_[i].ascii[c];
  const auto found = tables_[i].others.find(c);
  return found == tables_[i].others.end() ? std::nullopt : std::optional(found->second);
}

MergeTable::MergeTable(const std::vector<Merge>& merges, std::string_view where)
    : slots_(std::bit_ceil(std::max<std::size_t>(16, merges.size() * 2))),
      mask_(slots_.size() - 1) {
  std::uint32_t rank = 0;
  for (const Merge& merge : merges) {
    const std::uint64_t pair = pair_of(merge.left, merge.right);
    Slot& slot = slots_[slot_of(pair)];
    if (slot.pair == pair)
      refuse(where, fmt::format("merge {} repeats merge {}", rank, slot.entry.rank));
    slot = {pair, {rank++, merge.result}};
  }
}

std::size_t MergeTable::slot_of(std::uint64_t pair) const {
  std::uint64_t slot = mixed(pair) & mask_;
  while (slots_[slot].pair != kEmpty && slots_[slot].pair != pair) slot = (slot + 1) & mask_;
  return slot;
}

const MergeTable::Entry* MergeTable::find(TokenId left, TokenId right) const {
  const std::uint64_t pair = pair_of(left, right);
  const Slot& slot = slots_[slot_of(pair)];
  return slot.pair == pair ? &slot.entry : nullptr;
}

void BpeEncoder::encode(std::string_view word, std::vector<std::int64_t>& ids) {
  if (!model_.whole_words.empty()) {
    const auto whole = model_.whole_words.find(word);
    if (whole != model_.whole_words.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  symbols_.clear();
  heap_.clear();
  if (model_.raw_bytes) {
    load_bytes(word);
  } else {
    load_characters(word);
  }
  if (!symbols_.empty()) symbols_.back().next = -1;
  merge_all();
  for (const Symbol& symbol : symbols_) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

void BpeEncoder::add(TokenId id) {
  const auto at = static_cast<std::int32_t>(symbols_.size());
  symbols_.push_back({id, at - 1, at + 1, true});
}

void BpeEncoder::load_bytes(std::string_view word) {
  for (const char c : word) {
    const auto byte = static_cast<std::uint8_t>(c);
    const std::optional<TokenId> id = model_.byte_tokens[byte];
    // `tokenizers` drops such bytes silently: the model would be shown another text than the
    // user's.
    if (!id)
      refuse("encode", fmt::format("byte 0x{:02X} in {} has no token in the vocabulary", byte,
                                   in_quotes(word)));
    add(*id);
  }
}

// The order is that of `tokenizers`: bytes that stand in for a character overtake an unknown token
// that waits to be fused.
void BpeEncoder::load_characters(std::string_view word) {
  bool unknown_waits = false;
  for (std::size_t at = 0; at < word.size();) {
    const utf8::Step s = utf8::step(word, at);
    const std::string_view character = word.substr(at, s.length);
    const auto id = model_.characters.find(s.code_point, at == 0, at + s.length == word.size());
    at += s.length;
    if (!id && model_.byte_fallback && load_fallback(character)) continue;
    if (!id && !model_.unknown)
      refuse("encode", fmt::format("character {} in {} has no token in the vocabulary",
                                   in_quotes(character), in_quotes(word)));
    if (unknown_waits && (id || !model_.fuse_unknown)) add(*model_.unknown);
    if (id) add(*id);
    unknown_waits = !id;
  }
  if (unknown_waits) add(*model_.unknown);
}

bool BpeEncoder::load_fallback(std::string_view character) {
  const auto token = [this](char byte) {
    return model_.fallback_tokens[static_cast<std::uint8_t>(byte)];
  };
  if (!std::all_of(character.begin(), character.end(),
                   [&](char byte) { return token(byte).has_value(); }))
    return false;
  for (const char byte : character) add(*token(byte));
  return true;
}

void BpeEncoder::consider(std::int32_t left) {
  if (left < 0) return;
  const Symbol& symbol = symbols_[static_cast<std::size_t>(left)];
  if (symbol.next < 0) return;
  const TokenId right_id = symbols_[static_cast<std::size_t>(symbol.next)].id;
  const MergeTable::Entry* entry = model_.merges.find(symbol.id, right_id);
  if (entry == nullptr) return;
  heap_.push_back({pair_of(entry->rank, static_cast<TokenId>(left)), entry->result});
}

void BpeEncoder::merge_all() {
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank_then_position > b.rank_then_position;
  };
  for (std::size_t i = 0; i < symbols_.size(); ++i) consider(static_cast<std::int32_t>(i));
  std::make_heap(heap_.begin(), heap_.end(), later);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), later);
    const Candidate top = heap_.back();
    heap_.pop_back();
    const auto left = static_cast<std::int32_t>(top.rank_then_position & 0xFFFFFFFFU);
    const Symbol& symbol = symbols_[static_cast<std::size_t>(left)];
    if (!symbol.alive || symbol.next < 0) continue;
    // Stale unless what stands there now would still merge into the same token.
    const TokenId right_id = symbols_[static_cast<std::size_t>(symbol.next)].id;
    const MergeTable::Entry* now = model_.merges.find(symbol.id, right_id);
    if (now == nullptr || now->result != top.result) continue;
    symbols_[static_cast<std::size_t>(left)].id = top.result;
    merge(left);
    for (const std::int32_t candidate : {symbol.previous, left}) {
      const std::size_t before = heap_.size();
      consider(candidate);
      if (heap_.size() != before) std::push_heap(heap_.begin(), heap_.end(), later);
    }
  }
}

void BpeEncoder::merge(std::int32_t left) {
  Symbol& symbol = symbols_[static_cast<std::size_t>(left)];
  Symbol& right = symbols_[static_cast<std::size_t>(symbol.next)];
  right.alive = false;
  symbol.next = right.next;
  if (right.next >= 0) symbols_[static_cast<std::size_t>(right.next)].previous = left;
}

}  // namespace lenscpp::tokenizing
