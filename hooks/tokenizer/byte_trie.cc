#include "hooks/tokenizer/byte_trie.h"

namespace lenscpp::tokenizing {
namespace {

std::uint64_t edge_of(std::uint32_t node, char byte) {
  return (static_cast<std::uint64_t>(node) << 8U) | static_cast<std::uint8_t>(byte);
}

}  // namespace

void ByteTrie::insert(std::string_view spelling, TokenId id) {
  std::uint32_t node = kRoot;
  for (const char byte : spelling) {
    std::uint32_t next = child(node, byte);
    if (next == kNone) {
      if (tokens_.size() * 2 > slots_.size()) grow();
      next = static_cast<std::uint32_t>(tokens_.size());
      tokens_.push_back(kNone);
      slots_[slot_of(edge_of(node, byte))] = {edge_of(node, byte), next};
    }
    node = next;
  }
  tokens_[node] = id;
}

std::size_t ByteTrie::slot_of(std::uint64_t edge) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = ((edge * 0x9E3779B97F4A7C15U) >> 20U) & mask;  // Fibonacci hashing
  while (slots_[slot].node != kNone && slots_[slot].edge != edge) slot = (slot + 1) & mask;
  return slot;
}

std::uint32_t ByteTrie::child(std::uint32_t node, char byte) const {
  return slots_[slot_of(edge_of(node, byte))].node;
}

void ByteTrie::grow() {
  std::vector<Slot> old(slots_.size() * 2);
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.node != kNone) slots_[slot_of(slot.edge)] = slot;
  }
}

}  // namespace lenscpp::tokenizing
