// Every kind of tokenizer and every component against `tokenizers` (tests/golden/README.md).
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>

#include "hooks/tokenizer/decoders.h"
#include "hooks/tokenizer/normalizers.h"
#include "hooks/tokenizer/pre_tokenizers.h"
#include "hooks/tokenizer/tokenizer.h"
#include "hooks/tokenizer/utf8.h"
#include "tests/hooks/tokenizer/golden_lines.h"

namespace lenscpp {
namespace {

using nlohmann::json;
using testing::fnv1a64;
using testing::lines_of;
using Ids = std::vector<std::int64_t>;

const std::filesystem::path kFamilies = LENSCPP_SOURCE_DIR "/tests/golden/tokenizer_families";
constexpr std::size_t kChunk = 8;  // outputs under one hash

// Compares the hash of every eight outputs, each ended by U+001E; shows them where it differs.
template <class Input>
void expect_hashes(const std::vector<Input>& inputs, const json& expected,
                   const std::function<std::string(const Input&)>& output) {
  ASSERT_EQ((inputs.size() + kChunk - 1) / kChunk, expected.size());
  for (std::size_t begin = 0; begin < inputs.size(); begin += kChunk) {
    std::string joined;
    for (std::size_t i = begin; i < std::min(begin + kChunk, inputs.size()); ++i)
      joined += output(inputs[i]) + "\x1e";
    if (fnv1a64(joined).substr(0, 8) == expected[begin / kChunk]) continue;
    ADD_FAILURE() << "outputs " << begin << ".. differ: " << joined.substr(0, 2000);
  }
}

std::vector<std::string> corpus() {
  std::vector<std::string> texts;
  for (const json& line : lines_of(kFamilies / "corpus.jsonl")) texts.push_back(line["text"]);
  return texts;
}

std::string as_text(const Ids& ids) {
  std::string text;
  for (const std::int64_t id : ids) text += (text.empty() ? "" : " ") + std::to_string(id);
  return text;
}

// The generator of the golden scripts.
class Lcg {
 public:
  explicit Lcg(std::uint32_t seed) : x_(seed) {}
  std::uint32_t below(std::uint32_t n) {
    x_ = 1664525 * x_ + 1013904223;
    return (x_ >> 16U) % n;
  }

 private:
  std::uint32_t x_;
};

std::vector<Ids> random_ids(std::int64_t n_ids) {
  Lcg lcg(20'240'607 + 3);
  std::vector<Ids> rows(160);
  for (Ids& row : rows) {
    row.resize(1 + lcg.below(12));
    for (std::int64_t& id : row) id = lcg.below(static_cast<std::uint32_t>(n_ids));
  }
  return rows;
}

// ---- whole tokenizers ----

class TokenizerFamilies : public ::testing::TestWithParam<std::string> {
 protected:
  Tokenizer tokenizer() const {
    return Tokenizer::from_file(kFamilies / GetParam() / "tokenizer.json");
  }
  json expected() const { return lines_of(kFamilies / GetParam() / "expected.json").at(0); }
};

TEST_P(TokenizerFamilies, GiveTheIdsOfTokenizers) {
  const Tokenizer t = tokenizer();
  const json golden = expected();
  for (const json& line : golden["in_full"])
    EXPECT_EQ(t.encode(line["text"].get<std::string>()), line["ids"].get<Ids>()) << line["text"];
  expect_hashes<std::string>(corpus(), golden["ids"],
                             [&](const std::string& text) { return as_text(t.encode(text)); });
}

TEST_P(TokenizerFamilies, DecodeAsTokenizersDoes) {
  const Tokenizer t = tokenizer();
  const json golden = expected();
  expect_hashes<std::string>(corpus(), golden["decoded"],
                             [&](const std::string& text) { return t.decode(t.encode(text)); });
  const std::vector<Ids> rows = random_ids(t.vocab_size());
  expect_hashes<Ids>(rows, golden["random_decoded"], [&](const Ids& ids) { return t.decode(ids); });
  expect_hashes<Ids>(rows, golden["random_decoded_without_special"],
                     [&](const Ids& ids) { return t.decode(ids, true); });
}

TEST_P(TokenizerFamilies, PutSpecialTokensWhereTokenizersDoes) {
  const Tokenizer t = tokenizer();
  const json golden = expected();
  for (const json& line : golden["with_special"]) {
    const auto encoding = t.encode_with_special(line["text"].get<std::string>());
    EXPECT_EQ(encoding.ids, line["ids"].get<Ids>());
    EXPECT_EQ(encoding.type_ids, line["type_ids"].get<Ids>());
  }
  for (const json& line : golden["pairs"]) {
    const auto encoding =
        t.encode_with_special(line["first"].get<std::string>(), line["second"].get<std::string>());
    EXPECT_EQ(encoding.ids, line["ids"].get<Ids>());
    EXPECT_EQ(encoding.type_ids, line["type_ids"].get<Ids>());
  }
}

std::vector<std::string> folders() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kFamilies))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

INSTANTIATE_TEST_SUITE_P(Golden, TokenizerFamilies, ::testing::ValuesIn(folders()),
                         [](const auto& test) { return test.param; });

TEST(TokenizerFamiliesGolden, AreAllThere) { EXPECT_EQ(folders().size(), 16U); }

// ---- components by themselves ----

// Every character but most of planes 2 to 16, each after a letter and before a mark.
std::vector<std::string> sweep() {
  std::u32string chosen;
  const auto add = [&](char32_t begin, char32_t end) {
    for (char32_t c = begin; c < end; ++c) chosen += c;
  };
  add(0, 0xD800);
  add(0xE000, 0x20000);
  add(0x2F800, 0x2FA20);
  add(0xE0000, 0xE0200);
  std::vector<std::string> texts((chosen.size() + 2047) / 2048);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    std::string& text = texts[i / 2048];
    text += 'a';
    utf8::append(text, chosen[i]);
    utf8::append(text, 0x301);
  }
  return texts;
}

std::string normalize(const tokenizing::Normalizer& normalizer, const std::string& text) {
  tokenizing::Text changed{text, text.empty() ? 0 : utf8::step(text, 0).length};
  normalizer.apply(changed);
  return changed.bytes;
}

std::string words_of(const tokenizing::PreTokenizer& pre_tokenizer, const std::string& text) {
  if (text.empty()) return "";
  std::deque<std::string> changed;
  std::string joined;
  bool is_first = true;
  for (const auto& word : pre_tokenizer.words({text, utf8::step(text, 0).length}, changed)) {
    joined += (is_first ? "" : "\x1f") + std::string(word.text);
    is_first = false;
  }
  return joined;
}

// The lines of one stage, each given to `check` with its place in messages.
int each_component(const std::string& stage, const std::function<void(const json&)>& check) {
  int n_components = 0;
  for (const json& line : lines_of(kFamilies / "components.jsonl")) {
    if (line["stage"] != stage) continue;
    SCOPED_TRACE(line["config"].dump());
    check(line);
    ++n_components;
  }
  return n_components;
}

using Output = std::function<std::string(const std::string&)>;

void expect_texts(const json& line, const std::vector<std::string>& texts, const Output& output) {
  expect_hashes<std::string>(texts, line["outputs"], output);
  if (line.contains("sweep")) expect_hashes<std::string>(sweep(), line["sweep"], output);
}

TEST(TokenizerComponents, NormalizersGiveTheTextOfTokenizers) {
  const std::vector<std::string> texts = corpus();
  EXPECT_GT(each_component("normalizer",
                           [&](const json& line) {
                             const auto normalizer =
                                 tokenizing::Normalizer::read(line["config"], "normalizer");
                             expect_texts(line, texts, [&](const std::string& text) {
                               return normalize(normalizer, text);
                             });
                           }),
            20);
}

TEST(TokenizerComponents, PreTokenizersGiveTheWordsOfTokenizers) {
  const std::vector<std::string> texts = corpus();
  EXPECT_GT(each_component("pre_tokenizer",
                           [&](const json& line) {
                             const auto pre_tokenizer =
                                 tokenizing::PreTokenizer::read(line["config"], "pre_tokenizer");
                             expect_texts(line, texts, [&](const std::string& text) {
                               return words_of(pre_tokenizer, text);
                             });
                           }),
            40);
}

TEST(TokenizerComponents, DecodersGiveTheTextOfTokenizers) {
  const std::vector<json> rows = lines_of(kFamilies / "spellings.jsonl");
  EXPECT_GT(each_component("decoder",
                           [&](const json& line) {
                             const auto decoder =
                                 tokenizing::Decoder::read(line["config"], "decoder");
                             expect_hashes<json>(rows, line["outputs"], [&](const json& row) {
                               return decoder.decode(row.get<std::vector<std::string>>());
                             });
                           }),
            14);
}

}  // namespace
}  // namespace lenscpp
