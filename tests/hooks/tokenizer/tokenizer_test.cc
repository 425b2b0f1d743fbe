// Text to tokens and back. The golden files hold what `tokenizers` gives (tests/golden/README.md).
#include "hooks/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <type_traits>

#include "tests/hooks/tokenizer/expect_refusal.h"
#include "tests/hooks/tokenizer/golden_lines.h"
#include "tests/hooks/tokenizer/small_tokenizer.h"

namespace lenscpp {
namespace {

using nlohmann::json;
using testing::added_token;
using testing::expect_refusal;
using testing::lines_of;
using testing::small_tokenizer;
using Ids = std::vector<std::int64_t>;

Tokenizer small() { return Tokenizer::from_json(small_tokenizer().dump(), "small"); }

TEST(Tokenizer, EncodesAndDecodes) {
  const Tokenizer tokenizer = small();
  EXPECT_EQ(tokenizer.encode("the the<|endoftext|> é"), (Ids{257, 258, 259, 0x20, 0xC3, 0xA9}));
  EXPECT_EQ(tokenizer.decode(Ids{257, 258, 259, 0x20, 0xC3, 0xA9}), "the the<|endoftext|> é");
  EXPECT_EQ(tokenizer.decode(Ids{257, 258, 259, 0x20}, true), "the the ");
  EXPECT_EQ(tokenizer.encode(""), Ids{});
  EXPECT_EQ(tokenizer.decode({}), "");
}

TEST(Tokenizer, TokensAloneAreTextWithReplacements) {
  const Tokenizer tokenizer = small();
  EXPECT_EQ(tokenizer.token(258), " the");
  EXPECT_EQ(tokenizer.token(0xC3), "\uFFFD");
  EXPECT_EQ(tokenizer.token(0), std::string(1, '\0'));
  EXPECT_EQ(tokenizer.spelling(258), "Ġthe");
  EXPECT_EQ(tokenizer.spelling(259), "<|endoftext|>");
}

TEST(Tokenizer, KnowsItsVocabulary) {
  json file = small_tokenizer();
  file["model"]["vocab"]["gap"] = 1000;
  file["added_tokens"][0]["id"] = 260;
  const Tokenizer tokenizer = Tokenizer::from_json(file.dump(), "gap");
  EXPECT_EQ(tokenizer.vocab_size(), 261);
  EXPECT_EQ(tokenizer.id_limit(), 1001);
  EXPECT_EQ(tokenizer.id("Ġthe"), 258);
  EXPECT_EQ(tokenizer.id("<|endoftext|>"), 260);
  EXPECT_EQ(tokenizer.id(" the"), std::nullopt);
  EXPECT_TRUE(tokenizer.contains(1000));
  for (const std::int64_t id :
       {std::int64_t{-1}, std::int64_t{500}, std::int64_t{1001}, std::int64_t{1} << 40})
    EXPECT_FALSE(tokenizer.contains(id) || tokenizer.is_special(id));
  EXPECT_TRUE(tokenizer.is_special(260));
  EXPECT_FALSE(tokenizer.is_special(258));
  EXPECT_EQ(tokenizer.bos_token_id(), 260);
  EXPECT_EQ(tokenizer.eos_token_id(), 260);
}

TEST(Tokenizer, WithoutEndOfTextThereIsNoFirstToken) {
  json file = small_tokenizer();
  file["added_tokens"] = json::array();
  EXPECT_EQ(Tokenizer::from_json(file.dump(), "none").bos_token_id(), std::nullopt);
}

TEST(Tokenizer, UnknownIdsAreRefused) {
  const Tokenizer tokenizer = small();
  for (const std::int64_t id : {std::int64_t{-1}, std::int64_t{260}, std::int64_t{1} << 33}) {
    const std::vector<std::string> parts = {"id " + std::to_string(id) +
                                            " is no token; allowed: 260"};
    expect_refusal([&] { tokenizer.decode(Ids{0, id}); }, parts);
    expect_refusal([&] { tokenizer.token(id); }, parts);
    expect_refusal([&] { tokenizer.spelling(id); }, parts);
  }
}

TEST(Tokenizer, TextThatIsNotUtf8IsRefusedAtItsByte) {
  const Tokenizer tokenizer = small();
  expect_refusal([&] { tokenizer.encode("abc\xC3"); }, {"not UTF-8 at byte 3"});
  expect_refusal([&] { tokenizer.encode("\xED\xA0\x80"); }, {"not UTF-8 at byte 0"});
}

TEST(Tokenizer, AByteWithoutATokenIsRefusedNotDropped) {
  json file = small_tokenizer();
  file["model"]["vocab"].erase("q");
  file["model"]["vocab"]["xx"] = int{'q'};
  const Tokenizer tokenizer = Tokenizer::from_json(file.dump(), "no q");
  expect_refusal([&] { tokenizer.encode("a quiz"); }, {"byte 0x71", "\" quiz\""});
  EXPECT_EQ(tokenizer.encode("a").size(), 1U);
}

TEST(Tokenizer, EveryPartGetsThePrefixSpace) {
  json file = small_tokenizer();
  file["pre_tokenizer"]["add_prefix_space"] = true;
  const Tokenizer tokenizer = Tokenizer::from_json(file.dump(), "prefix");
  EXPECT_EQ(tokenizer.encode("the<|endoftext|>the"), (Ids{258, 259, 258}));
  EXPECT_EQ(tokenizer.encode(""), Ids{});
}

TEST(Tokenizer, NormalizedTokensAreFoundInWhatTheOthersLeave) {
  json file = small_tokenizer();
  file["added_tokens"].push_back(added_token(260, "a<|endoftext|>"));
  file["added_tokens"][1]["normalized"] = true;
  const Tokenizer tokenizer = Tokenizer::from_json(file.dump(), "normalized");
  EXPECT_EQ(tokenizer.encode("a<|endoftext|>"), (Ids{'a', 259}));
}

TEST(Tokenizer, RandomTextSurvivesTheRoundTrip) {
  const Tokenizer tokenizer = small();
  std::mt19937 random(3);
  for (int i = 0; i < 500; ++i) {
    std::u32string text;
    for (unsigned n = random() % 50; n > 0; --n) {
      const char32_t c = random() % (random() % 2 == 0 ? 0x80 : 0x110000);
      if (c < 0xD800 || c > 0xDFFF) text += c;
    }
    const std::string utf8 = std::filesystem::path(text).string();
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(utf8)), utf8);
  }
}

TEST(Tokenizer, LongTextTakesLinearTime) {
  const Tokenizer tokenizer = small();
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& unit : {std::string("a"), std::string("the"), std::string(" "),
                                  std::string("é.1 "), std::string("\n")}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    ASSERT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(100));
}

TEST(Tokenizer, ManyThreadsMayShareOne) {
  static_assert(std::is_copy_constructible_v<Tokenizer>);
  const Tokenizer tokenizer = small();
  const std::string text = "the other thing's 12 <|endoftext|> é\n";
  const Ids expected = tokenizer.encode(text);
  std::vector<int> n_equal(4, 0);
  std::vector<std::thread> threads;
  for (int& n : n_equal) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i)
        n += tokenizer.encode(text) == expected && tokenizer.decode(expected) == text;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(n_equal, std::vector<int>(4, 200));
}

// ---- files
// -------------------------------------------------------------------------------------------

class TokenizerFromFile : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(::testing::TempDir()) / "lenscpp_tokenizer_test";
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const char* name, const std::string& content) const {
    std::ofstream(folder_ / name) << content;
  }
  std::filesystem::path folder_;
};

TEST_F(TokenizerFromFile, ReadsTheConfigBesideIt) {
  write("tokenizer.json", small_tokenizer().dump());
  EXPECT_EQ(Tokenizer::from_file(folder_ / "tokenizer.json").bos_token_id(), 259);
  write("tokenizer_config.json", R"({"bos_token": "the"})");
  EXPECT_EQ(Tokenizer::from_file(folder_ / "tokenizer.json").bos_token_id(), 257);
}

TEST_F(TokenizerFromFile, HashesTheBytesOfTheFile) {
  write("tokenizer.json", small_tokenizer().dump());
  const Tokenizer tokenizer = Tokenizer::from_file(folder_ / "tokenizer.json");
  EXPECT_EQ(tokenizer.source_bytes_hash(), small().source_bytes_hash());
  EXPECT_EQ(tokenizer.source_bytes_hash().size(), 32U);
  EXPECT_NE(tokenizer.source_bytes_hash(),
            Tokenizer::from_json(small_tokenizer().dump() + " ", "x").source_bytes_hash());
}

TEST_F(TokenizerFromFile, WhatIsNoFileIsRefused) {
  expect_refusal([&] { Tokenizer::from_file(folder_ / "absent.json"); },
                 {"absent.json", "no such file"});
  expect_refusal([&] { Tokenizer::from_file(folder_); }, {"no such file"});
  write("tokenizer.json", "");
  expect_refusal([&] { Tokenizer::from_file(folder_ / "tokenizer.json"); }, {"not JSON at byte"});
  write("tokenizer.json", small_tokenizer().dump());
  write("tokenizer_config.json", "{");
  expect_refusal([&] { Tokenizer::from_file(folder_ / "tokenizer.json"); },
                 {"tokenizer_config.json"});
}

// ---- golden
// ------------------------------------------------------------------------------------------

const std::filesystem::path kGolden = LENSCPP_SOURCE_DIR "/tests/golden/tokenizer";

// Long texts are stored as a formula: pieces picked by a linear congruential generator.
std::string text_of(const json& entry) {
  if (entry.contains("text")) return entry["text"];
  const json& formula = entry["formula"];
  const std::vector<std::string> pieces = formula["pieces"];
  std::uint32_t x = formula["seed"];
  std::string text;
  for (int i = 0; i < formula["count"]; ++i) {
    x = 1664525 * x + 1013904223;
    text += pieces[(x >> 16U) % pieces.size()];
  }
  return text;
}

std::string fnv1a64(const Ids& ids) {
  std::string bytes;
  for (const std::int64_t id : ids) {
    for (unsigned shift = 0; shift < 32; shift += 8)
      bytes += static_cast<char>((id >> shift) & 0xFF);
  }
  return testing::fnv1a64(bytes);
}

void expect_line(const Tokenizer& tokenizer, const std::string& text, const json& expected) {
  const Ids ids = tokenizer.encode(text);
  if (expected.contains("ids")) {
    EXPECT_EQ(ids, expected["ids"].get<Ids>()) << expected["n"] << ": " << text;
    EXPECT_EQ(tokenizer.decode(ids), expected["decoded"].get<std::string>());
    return;
  }
  EXPECT_EQ(ids.size(), expected["n_ids"].get<std::size_t>());
  EXPECT_EQ(fnv1a64(ids), expected["ids_fnv1a64"]);
  EXPECT_EQ(testing::fnv1a64(tokenizer.decode(ids)), expected["decoded_fnv1a64"]);
}

TEST(TokenizerGolden, EveryVariantGivesTheIdsOfTokenizers) {
  const std::vector<json> corpus = lines_of(kGolden / "corpus.jsonl");
  ASSERT_GT(corpus.size(), 900U);
  int n_variants = 0;
  for (const auto& folder : std::filesystem::directory_iterator(kGolden)) {
    if (!folder.is_directory()) continue;
    SCOPED_TRACE(folder.path().filename());
    const Tokenizer tokenizer = Tokenizer::from_file(folder.path() / "tokenizer.json");
    // The same tokenizer in another spelling has no expectations of its own.
    const bool own = std::filesystem::exists(folder.path() / "expected.jsonl");
    const auto expected = lines_of((own ? folder.path() : kGolden / "gpt2") / "expected.jsonl");
    ASSERT_EQ(expected.size(), corpus.size());
    for (std::size_t i = 0; i < corpus.size(); ++i)
      expect_line(tokenizer, text_of(corpus[i]), expected[i]);
    ++n_variants;
  }
  EXPECT_EQ(n_variants, 9);
}

TEST(TokenizerGolden, IdsInNoOrderDecodeAsInTokenizers) {
  std::size_t n_lines = 0;
  for (const auto& folder : std::filesystem::directory_iterator(kGolden)) {
    if (!std::filesystem::exists(folder.path() / "decode.jsonl")) continue;
    const Tokenizer tokenizer = Tokenizer::from_file(folder.path() / "tokenizer.json");
    for (const json& line : lines_of(folder.path() / "decode.jsonl")) {
      const Ids ids = line["ids"];
      EXPECT_EQ(tokenizer.decode(ids), line["decoded"].get<std::string>());
      EXPECT_EQ(tokenizer.decode(ids, true), line["decoded_without_special"].get<std::string>());
      ++n_lines;
    }
  }
  EXPECT_GT(n_lines, 500U);
}

}  // namespace
}  // namespace lenscpp
