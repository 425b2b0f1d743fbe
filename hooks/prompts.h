// Prompts of unequal length in one batch: which of a prompt's positions hold its tokens. What is
// outside is padding: no query sees it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lenscpp {

/// Positions [begin, end) of a prompt.
struct Span {
  std::int64_t begin, end;
  bool operator==(const Span&) const = default;
};

/// On which side of its tokens a prompt is padded.
enum class PaddingSide : std::uint8_t { left, right };
std::string_view name_of(PaddingSide side);

/// The spans of an attention mask [batch, pos] of ones and zeros; empty where all are ones. Throws
/// std::invalid_argument for other values, and where a prompt's ones do not stand together or it
/// has none.
std::vector<Span> spans_of_mask(std::span<const std::int64_t> mask, std::int64_t batch,
                                std::int64_t pos);

/// Where a row stands in its prompt, counted from the prompt's first token: what both sides of it
/// are given, 0 and the last position, is read by nobody.
constexpr std::int64_t position_in(const Span& prompt, std::int64_t pos) {
  return pos < prompt.begin ? 0 : (pos < prompt.end ? pos : prompt.end - 1) - prompt.begin;
}

}  // namespace lenscpp
