#include "hooks/tokenizer/word_encoder.h"

namespace lenscpp::tokenizing {
namespace {

// Longer words are rare and repeat rarely; a bound keeps hostile text from filling memory.
constexpr std::size_t kCachedWord_bytes = 64;
constexpr std::size_t kCachedWords = 1U << 16U;

}  // namespace

void WordEncoder::append(std::string_view word, std::vector<std::int64_t>& ids) {
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

}  // namespace lenscpp::tokenizing
