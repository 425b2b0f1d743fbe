// Merging one word: order, stale candidates, long words, missing bytes.
#include "hooks/tokenizer/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>

#include "tests/hooks/tokenizer/expect_refusal.h"

namespace lenscpp {
namespace {

using tokenizing::BpeEncoder;
using tokenizing::BpeModel;
using tokenizing::Merge;
using tokenizing::MergeTable;
using Ids = std::vector<std::int64_t>;

BpeModel model_with(const std::vector<Merge>& merges) {
  BpeModel model;
  for (tokenizing::TokenId byte = 0; byte < 256; ++byte) model.byte_tokens[byte] = byte;
  model.merges = MergeTable(merges, "test");
  return model;
}

Ids encode(const BpeModel& model, std::string_view word) {
  Ids ids;
  BpeEncoder(model).append(word, ids);
  return ids;
}

// The definition: while some pair has a merge, merge the leftmost of lowest rank.
Ids encode_slowly(const BpeModel& model, std::string_view word) {
  Ids ids(word.begin(), word.end());
  while (true) {
    std::size_t best = ids.size();
    std::uint32_t best_rank = ~0U;
    tokenizing::TokenId result = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto* merge = model.merges.find(static_cast<tokenizing::TokenId>(ids[i]),
                                            static_cast<tokenizing::TokenId>(ids[i + 1]));
      if (merge == nullptr || merge->rank >= best_rank) continue;
      best = i;
      best_rank = merge->rank;
      result = merge->result;
    }
    if (best == ids.size()) return ids;
    ids[best] = result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, LowestRankMergesFirst) {
  const BpeModel model = model_with({{'b', 'c', 300}, {'a', 'b', 301}, {'a', 300, 302}});
  EXPECT_EQ(encode(model, "abc"), (Ids{302}));
  EXPECT_EQ(encode(model, "ab"), (Ids{301}));
  EXPECT_EQ(encode(model, ""), (Ids{}));
}

TEST(Bpe, EqualPairsMergeFromTheLeft) {
  const BpeModel model = model_with({{'a', 'a', 300}, {300, 300, 301}});
  EXPECT_EQ(encode(model, "aaa"), (Ids{300, 'a'}));
  EXPECT_EQ(encode(model, "aaaaaaa"), (Ids{301, 300, 'a'}));
}

TEST(Bpe, AgreesWithTheDefinitionOnRandomMerges) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<Merge> merges;
    for (tokenizing::TokenId next = 300; next < 330; ++next) {
      const auto pick = [&] {
        const auto i = static_cast<tokenizing::TokenId>(random() % (4 + next - 300));
        return i < 4 ? 'a' + i : 296 + i;
      };
      const Merge merge{pick(), pick(), next};
      const auto same = [&](const Merge& m) {
        return m.left == merge.left && m.right == merge.right;
      };
      if (std::none_of(merges.begin(), merges.end(), same)) merges.push_back(merge);
    }
    const BpeModel model = model_with(merges);
    for (int n = 0; n < 20; ++n) {
      std::string word;
      for (std::size_t i = 0; i < random() % 40; ++i) word += static_cast<char>('a' + random() % 4);
      ASSERT_EQ(encode(model, word), encode_slowly(model, word)) << word;
    }
  }
}

TEST(Bpe, CachedWordsGiveTheSameTokens) {
  const BpeModel model = model_with({{'t', 'h', 300}});
  BpeEncoder encoder(model);
  const std::string word = "thx";
  Ids ids;
  for (int i = 0; i < 3; ++i) encoder.append(word, ids);
  EXPECT_EQ(ids, (Ids{300, 'x', 300, 'x', 300, 'x'}));
}

TEST(Bpe, WholeWordsComeBeforeMerges) {
  BpeModel model = model_with({{'a', 'b', 300}});
  model.whole_words.emplace("abab", 400);
  EXPECT_EQ(encode(model, "abab"), (Ids{400}));
  EXPECT_EQ(encode(model, "ababab"), (Ids{300, 300, 300}));
}

TEST(Bpe, AMillionBytesInOneWordAreNoWorseThanShortWords) {
  const BpeModel model = model_with({{'a', 'a', 300}, {300, 300, 301}, {301, 301, 302}});
  const std::string word(1'000'000, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(encode(model, word).size(), 125'000U);
  // A quadratic merge would take hours; the limit leaves room for sanitizers and busy machines.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
}

TEST(Bpe, AByteWithoutATokenIsRefused) {
  BpeModel model = model_with({});
  model.byte_tokens['q'] = std::nullopt;
  testing::expect_refusal([&] { encode(model, "aqa"); }, {"byte 0x71", "\"aqa\"", "no token"});
}

TEST(Bpe, ARepeatedMergeIsRefused) {
  testing::expect_refusal(
      [] {
        MergeTable({{1, 2, 3}, {2, 1, 4}, {1, 2, 5}}, "here");
      },
      {"here", "merge 2 repeats merge 0"});
}

}  // namespace
}  // namespace lenscpp
