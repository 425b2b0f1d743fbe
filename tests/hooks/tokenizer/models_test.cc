// WordPiece, Unigram and BPE over characters: what the golden files cannot show.
#include "hooks/tokenizer/models.h"

#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "hooks/tokenizer/tokenizer.h"
#include "tests/hooks/tokenizer/expect_refusal.h"
#include "tests/hooks/tokenizer/small_tokenizer.h"

namespace lenscpp {
namespace {

using nlohmann::json;
using testing::expect_refusal;
using Ids = std::vector<std::int64_t>;

Tokenizer with_model(const json& model) {
  return Tokenizer::from_json(json{{"model", model}}.dump(), "model");
}

TEST(TokenizerModels, WordPieceTakesTheLongestAndElseNothing) {
  const Tokenizer tokenizer = with_model(
      {{"type", "WordPiece"},
       {"unk_token", "?"},
       {"continuing_subword_prefix", "##"},
       {"max_input_chars_per_word", 4},
       {"vocab", {{"?", 0}, {"a", 1}, {"ab", 2}, {"##c", 3}, {"##cd", 4}, {"\u00e9", 5}}}});
  EXPECT_EQ(tokenizer.encode("abc"), (Ids{2, 3}));
  EXPECT_EQ(tokenizer.encode("abcd"), (Ids{2, 4}));
  EXPECT_EQ(tokenizer.encode("acx"), Ids{0});
  EXPECT_EQ(tokenizer.encode("c"), Ids{0});
  EXPECT_EQ(tokenizer.encode("abccc"), Ids{0});                 // five characters
  EXPECT_EQ(tokenizer.encode("\u00e9ccc"), (Ids{5, 3, 3, 3}));  // four, five bytes
}

TEST(TokenizerModels, UnigramTakesTheHighestSum) {
  const json vocab =
      json::parse(R"([["<unk>", 0], ["a", -1], ["b", -1], ["ab", -1.5], ["abab", -3.5]])");
  const Tokenizer tokenizer = with_model({{"type", "Unigram"}, {"unk_id", 0}, {"vocab", vocab}});
  EXPECT_EQ(tokenizer.encode("abab"), (Ids{3, 3}));
  EXPECT_EQ(tokenizer.encode("axyb"), (Ids{1, 0, 2}));  // neighbours that are unknown are one
  EXPECT_EQ(tokenizer.encode("xay"), (Ids{0, 1, 0}));
}

TEST(TokenizerModels, WhatHasNoTokenIsRefusedNotDropped) {
  const Tokenizer unigram =
      with_model({{"type", "Unigram"}, {"vocab", json::parse(R"([["a", -1]])")}});
  expect_refusal([&] { unigram.encode("aax"); }, {"character \"x\" in \"aax\" has no token"});
  const json bpe = {{"type", "BPE"}, {"vocab", {{"a", 0}}}, {"merges", json::array()}};
  expect_refusal([&] { with_model(bpe).encode("aax"); }, {"character \"x\" in \"aax\""});
  EXPECT_EQ(with_model(bpe).encode("aa"), (Ids{0, 0}));
}

TEST(TokenizerModels, ALongWordTakesLinearTime) {
  json bpe = {{"type", "BPE"}, {"unk_token", "<unk>"}, {"vocab", {{"<unk>", 0}, {"a", 1}}}};
  bpe["merges"] = json::array();
  std::string run = "a";
  for (int id = 2; id < 8; ++id, run += run) {
    bpe["vocab"][run + run] = id;
    bpe["merges"].push_back({run, run});
  }
  json unigram =
      json::parse(R"({"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["aa", -1]]})");
  json wordpiece = {{"type", "WordPiece"},
                    {"unk_token", "a"},
                    {"continuing_subword_prefix", ""},
                    {"max_input_chars_per_word", 10'000'000},
                    {"vocab", {{"a", 0}, {std::string(500, 'a') + "b", 1}}}};
  const std::string text(1'000'000, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(with_model(bpe).encode(text).size(), text.size() / 64);
  EXPECT_EQ(with_model(unigram).encode(text).size(), text.size() / 2);
  EXPECT_EQ(with_model(wordpiece).encode(text).size(), text.size());
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(100));
}

TEST(TokenizerModels, NormalizersAndDecodersThatExplodeAreRefused) {
  json file = testing::small_tokenizer();
  const json twice = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aa"}};
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::vector<json>(40, twice)}};
  const Tokenizer growing = Tokenizer::from_json(file.dump(), "growing");
  EXPECT_EQ(growing.encode("b").size(), 1U);
  expect_refusal([&] { growing.encode("a"); }, {"normalize", "allowed: 4128"});
  file["normalizer"] = nullptr;
  file["decoder"] = {{"type", "Sequence"}, {"decoders", std::vector<json>(40, twice)}};
  const Tokenizer exploding = Tokenizer::from_json(file.dump(), "exploding");
  expect_refusal([&] { exploding.decode(Ids{'a'}); }, {"decode", "more than"});
}

TEST(TokenizerModels, AnAddedTokenThatTheNormalizerErasesIsRefused) {
  json file = testing::small_tokenizer();
  file["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  file["added_tokens"].push_back(testing::added_token(260, "  "));
  EXPECT_NO_THROW(Tokenizer::from_json(file.dump(), "erased"));
  file["added_tokens"][1]["normalized"] = true;
  expect_refusal([&] { Tokenizer::from_json(file.dump(), "erased"); },
                 {"erased: the normalizer leaves nothing of the added token \"  \""});
}

}  // namespace
}  // namespace lenscpp
