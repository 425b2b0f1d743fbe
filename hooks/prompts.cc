// Spans from attention masks.
#include "hooks/prompts.h"

#include <algorithm>
#include <stdexcept>

namespace lenscpp {

std::string_view name_of(PaddingSide side) {
  switch (side) {
    case PaddingSide::left:
      return "left";
    case PaddingSide::right:
      return "right";
  }
  throw std::logic_error("[prompts] not a PaddingSide");
}

std::vector<Span> spans_of_mask(std::span<const std::int64_t> mask, std::int64_t batch,
                                std::int64_t pos) {
  auto refuse = [](std::int64_t prompt, const std::string& reason) {
    throw std::invalid_argument("[prompts] attention_mask of prompt " + std::to_string(prompt) +
                                ": " + reason);
  };
  if (std::ssize(mask) != batch * pos)
    throw std::invalid_argument("[prompts] attention_mask has " + std::to_string(mask.size()) +
                                " values; needed: one for each of " + std::to_string(batch) +
                                " x " + std::to_string(pos) + " tokens");
  std::vector<Span> spans;
  for (std::int64_t b = 0; b < batch; ++b) {
    auto row = mask.subspan(static_cast<std::size_t>(b * pos), static_cast<std::size_t>(pos));
    for (std::int64_t value : row)
      if (value != 0 && value != 1)
        refuse(b, "holds " + std::to_string(value) + "; allowed: 0 and 1");
    auto begin = std::ranges::find(row, 1), end = std::find(begin, row.end(), 0);
    if (begin == row.end()) refuse(b, "all of it is padding");
    if (auto again = std::find(end, row.end(), 1); again != row.end())
      refuse(b, "has a hole: 0 at position " + std::to_string(end - row.begin()) + ", 1 at " +
                    std::to_string(again - row.begin()) +
                    "; the tokens of a prompt stand together, padding before or behind them");
    spans.push_back({begin - row.begin(), end - row.begin()});
  }
  if (std::ranges::all_of(spans, [&](const Span& s) { return s == Span{0, pos}; })) return {};
  return spans;
}

}  // namespace lenscpp
