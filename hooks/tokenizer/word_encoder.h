// What BPE, WordPiece and Unigram have in common: words in, tokens out, equal words only once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lenscpp::tokenizing {

/// Encodes words of one text. Holds the word cache and scratch space: one per call, never shared,
/// so that a model can be used from many threads. The model and all words must outlive it.
class WordEncoder {
 public:
  WordEncoder() = default;
  WordEncoder(const WordEncoder&) = delete;
  virtual ~WordEncoder() = default;
  /// Appends the tokens of a non-empty `word` to `ids`. Throws std::invalid_argument for a
  /// character that has no token where the model has no unknown token either.
  void append(std::string_view word, std::vector<std::int64_t>& ids);

 protected:
  virtual void encode(std::string_view word, std::vector<std::int64_t>& ids) = 0;

 private:
  struct CachedWord {
    std::size_t begin = 0;
    std::size_t size = 0;
  };
  std::unordered_map<std::string_view, CachedWord> cache_;
  std::vector<std::int64_t> cached_ids_;
};

}  // namespace lenscpp::tokenizing
