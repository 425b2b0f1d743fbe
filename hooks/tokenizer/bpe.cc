// Merging with a linked list of symbols and a heap of candidate pairs, so that a word of 10^6 bytes
// is no worse than many short ones. Equal ranks go left to right, as in `tokenizers`.
#include "hooks/tokenizer/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "hooks/tokenizer/refusal.h"

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

// Longer words are rare and repeat rarely; a bound keeps hostile text from filling memory.
constexpr std::size_t kCachedWord_bytes = 64;
constexpr std::size_t kCachedWords = 1U << 16U;

}  // namespace

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

void BpeEncoder::append(std::string_view word, std::vector<std::int64_t>& ids) {
  if (word.size() > kCachedWord_bytes) return encode(word, ids);
  if (const auto hit = cache_.find(word); hit != cache_.end()) {
    const auto begin = cached_ids_.begin() + static_cast<std::ptrdiff_t>(hit->second.begin);
    ids.insert(ids.end(), begin, begin + static_cast<std::ptrdiff_t>(hit->second.size));
    return;
  }
  const std::size_t before = ids.size();
  encode(word, ids);
  if (cache_.size() >= kCachedWords) return;
  cache_.emplace(word, CachedWord{cached_ids_.size(), ids.size() - before});
  cached_ids_.insert(cached_ids_.end(), ids.begin() + static_cast<std::ptrdiff_t>(before),
                     ids.end());
}

void BpeEncoder::encode(std::string_view word, std::vector<std::int64_t>& ids) {
  if (!model_.whole_words.empty()) {
    const auto whole = model_.whole_words.find(std::string(word));
    if (whole != model_.whole_words.end()) {
      ids.push_back(whole->second);
      return;
    }
  }
  load(word);
  merge_all();
  for (const Symbol& symbol : symbols_) {
    if (symbol.alive) ids.push_back(symbol.id);
  }
}

void BpeEncoder::load(std::string_view word) {
  symbols_.clear();
  heap_.clear();
  for (const char c : word) {
    const auto byte = static_cast<std::uint8_t>(c);
    const std::optional<TokenId> id = model_.byte_tokens[byte];
    // `tokenizers` drops such bytes silently: the model would be shown another text than the
    // user's.
    if (!id)
      refuse("encode", fmt::format("byte 0x{:02X} in {} has no token in the vocabulary", byte,
                                   in_quotes(word)));
    const auto at = static_cast<std::int32_t>(symbols_.size());
    symbols_.push_back({*id, at - 1, at + 1, true});
  }
  if (!symbols_.empty()) symbols_.back().next = -1;
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
