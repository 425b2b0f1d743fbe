// tokenizer.json and tokenizer_config.json: every refusal, and what is allowed next to it.
#include "hooks/tokenizer/tokenizer_file.h"

#include <gtest/gtest.h>

#include <functional>

#include "hooks/tokenizer/tokenizer.h"
#include "tests/hooks/tokenizer/expect_refusal.h"
#include "tests/hooks/tokenizer/small_tokenizer.h"

namespace lenscpp {
namespace {

using nlohmann::json;
using testing::added_token;
using testing::small_tokenizer;

// Expects the small tokenizer to be refused after an edit.
void refused(const std::function<void(json&)>& edit, const std::vector<std::string>& parts) {
  json file = small_tokenizer();
  edit(file);
  testing::expect_refusal([&] { Tokenizer::from_json(file.dump(), "tokenizer.json"); }, parts);
}

void allowed(const std::function<void(json&)>& edit) {
  json file = small_tokenizer();
  edit(file);
  EXPECT_NO_THROW(Tokenizer::from_json(file.dump(), "tokenizer.json"));
}

TEST(TokenizerFile, TopLevelSections) {
  allowed([](json&) {});
  for (const char* key :
       {"version", "truncation", "padding", "normalizer", "post_processor", "added_tokens"})
    allowed([&](json& file) { file.erase(key); });
  for (const char* key : {"model", "pre_tokenizer", "decoder"})
    refused([&](json& file) { file.erase(key); },
            {"tokenizer.json", "\"" + std::string(key) + "\" is missing"});
  refused([](json& file) { file["version"] = "2.0"; }, {"\"version\" is the string \"2.0\""});
  refused([](json& file) { file["trunction"] = 1; },
          {"unknown key \"trunction\"; allowed: added_tokens"});
  refused(
      [](json& file) {
        file["truncation"] = {{"max_length", 8}};
      },
      {"tokenizer.json: truncation: an object is not supported; allowed: null"});
  refused([](json& file) { file["padding"] = {{"strategy", "BatchLongest"}}; }, {"padding"});
  refused(
      [](json& file) {
        file["normalizer"] = {{"type", "NFC"}};
      },
      {"normalizer: type the string \"NFC\" is not supported; allowed: null"});
}

TEST(TokenizerFile, PreTokenizers) {
  refused(
      [](json& file) {
        file["pre_tokenizer"] = {{"type", "Metaspace"}};
      },
      {"[tokenizer] tokenizer.json: pre_tokenizer: type \"Metaspace\" is not supported; allowed: "
       "ByteLevel, Sequence, Split, Digits"});
  refused([](json& file) { file["pre_tokenizer"] = 3; },
          {"pre_tokenizer: found 3; allowed: an object"});
  refused([](json& file) { file["pre_tokenizer"].erase("type"); }, {"\"type\" is missing"});
  refused([](json& file) { file["pre_tokenizer"].erase("add_prefix_space"); },
          {"\"add_prefix_space\" is missing"});
  refused([](json& file) { file["pre_tokenizer"]["use_regex"] = 1; }, {"\"use_regex\" is 1"});
  refused([](json& file) { file["pre_tokenizer"]["more"] = 1; }, {"unknown key \"more\""});
  allowed([](json& file) {
    file["pre_tokenizer"].erase("use_regex");
    file["pre_tokenizer"].erase("trim_offsets");
  });
}

json sequence(const std::vector<json>& parts) {
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

json split(const json& pattern) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}, {"invert", false}};
}

TEST(TokenizerFile, SequencesEndInOneByteLevel) {
  const json bytes = small_tokenizer()["pre_tokenizer"];
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const json space = split({{"String", " "}});
  allowed([&](json& file) {
    file["pre_tokenizer"] = sequence({space, digits, sequence({space}), bytes});
  });
  refused([&](json& file) { file["pre_tokenizer"] = sequence({space}); }, {"no ByteLevel"});
  refused([&](json& file) { file["pre_tokenizer"] = sequence({}); }, {"no ByteLevel"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = sequence({bytes, space});
      },
      {"pretokenizers 1", "\"Split\" after ByteLevel"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = sequence({bytes, bytes});
      },
      {"after ByteLevel"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", 1}};
      },
      {"\"pretokenizers\" is 1; allowed: an array"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = sequence({{{"type", "Whitespace"}}, bytes});
      },
      {"pretokenizers 0", "\"Whitespace\""});
}

TEST(TokenizerFile, SplitsAreComplete) {
  const auto with = [](const json& part) {
    return [part](json& file) { file["pre_tokenizer"] = sequence({part, file["pre_tokenizer"]}); };
  };
  allowed(with(split({{"Regex", "\\s+"}})));
  refused(with(split({{"Regex", "\\w+"}})), {"pretokenizers 0: pattern", "\\w"});
  refused(with(split({{"Regex", "a*"}})), {"empty string"});
  refused(with(split({{"String", ""}})), {"the pattern is empty"});
  refused(with(split({{"Regex", 1}})), {"\"Regex\" is 1; allowed: a string"});
  refused(with(split({{"Regex", "a"}, {"String", "b"}})), {"allowed: one of"});
  refused(with(split(json::object())), {"allowed: one of"});
  refused(with(split({{"Glob", "a"}})), {"unknown key \"Glob\""});
  refused(with(split(nullptr)), {"\"pattern\" is missing"});
  json part = split({{"String", "a"}});
  part["behavior"] = "isolated";
  refused(with(part), {"behavior \"isolated\" is not supported; allowed: Removed, Isolated"});
  part["behavior"] = "Isolated";
  part.erase("invert");
  refused(with(part), {"\"invert\" is missing"});
  refused(with({{"type", "Digits"}}), {"\"individual_digits\" is missing"});
}

TEST(TokenizerFile, PostProcessorsThatOnlyAddOrTrim) {
  const json template_processing = {{"type", "TemplateProcessing"}, {"single", json::array()}};
  allowed([&](json& file) { file["post_processor"] = template_processing; });
  allowed([&](json& file) {
    file["post_processor"] = {{"type", "Sequence"}, {"processors", {template_processing}}};
  });
  refused(
      [](json& file) {
        file["post_processor"] = {{"type", "BertProcessing"}};
      },
      {"post_processor: type \"BertProcessing\" is not supported; allowed: ByteLevel, Template"});
  refused(
      [](json& file) {
        file["post_processor"] = {{"type", "Sequence"}, {"processors", {{{"type", "X"}}}}};
      },
      {"type \"X\""});
  refused(
      [](json& file) {
        file["post_processor"] = {{"type", "Sequence"}, {"processors", 1}};
      },
      {"\"processors\" is 1"});
}

TEST(TokenizerFile, TheDecoderIsByteLevel) {
  refused(
      [](json& file) {
        file["decoder"] = {{"type", "WordPiece"}};
      },
      {"decoder: type \"WordPiece\" is not supported; allowed: ByteLevel"});
  refused([](json& file) { file["decoder"] = nullptr; }, {"\"decoder\" is missing"});
  refused([](json& file) { file["decoder"]["x"] = 1; }, {"decoder: unknown key \"x\""});
}

TEST(TokenizerFile, ModelOptions) {
  const auto model = [](const char* key, const json& value) {
    return [=](json& file) { file["model"][key] = value; };
  };
  allowed([](json& file) { file["model"].erase("type"); });
  refused(model("type", "Unigram"), {"model: type is the string \"Unigram\"", "allowed: \"BPE\""});
  allowed(model("dropout", 0.0));
  refused(model("dropout", 0.1),
          {"model: \"dropout\" is 0.1, which is not supported; allowed: null, 0.0"});
  allowed(model("continuing_subword_prefix", ""));
  refused(model("continuing_subword_prefix", "##"), {"continuing_subword_prefix", "\"##\""});
  allowed(model("end_of_word_suffix", ""));
  refused(model("end_of_word_suffix", "</w>"), {"end_of_word_suffix", "\"</w>\""});
  refused(model("byte_fallback", true), {"byte_fallback", "true"});
  refused(model("ignore_merges", 1), {"ignore_merges", "1"});
  refused(model("fuse_unk", "x"), {"fuse_unk"});
  refused(model("cache_capacity", 1), {"unknown key \"cache_capacity\""});
  allowed(model("unk_token", "<|endoftext|>"));  // with 256 bytes it can never be produced
  refused(model("unk_token", 1), {"unk_token"});
  refused(
      [](json& file) {
        file["model"]["unk_token"] = "th";
        file["model"]["vocab"].erase("q");
        file["added_tokens"][0]["id"] = 258;
      },
      {"\"unk_token\" is the string \"th\", but not every byte has a token"});
}

TEST(TokenizerFile, Vocabulary) {
  const auto vocab = [](const char* token, const json& id) {
    return [=](json& file) { file["model"]["vocab"][token] = id; };
  };
  refused([](json& file) { file["model"].erase("vocab"); }, {"model: \"vocab\" is missing"});
  refused([](json& file) { file["model"]["vocab"] = json::object(); },
          {"vocab: found an object; allowed"});
  refused([](json& file) { file["model"]["vocab"] = {1, 2}; }, {"vocab: found an array"});
  refused(vocab("x", -1), {"vocab: token \"x\": id is -1; allowed: 0..16777215"});
  refused(vocab("x", 1.5), {"id is 1.5"});
  refused(vocab("x", "7"), {"id is the string \"7\""});
  refused(vocab("x", 16777216), {"id is 16777216"});
  refused(vocab("x", json::parse("18446744073709551615")), {"id is 18446744073709551615"});
  refused(vocab("xx", 7), {"id 7 is given to", "\"xx\""});
  refused(vocab("", 999), {"the empty string"});
  std::string twice = small_tokenizer().dump();
  twice.replace(twice.find("\"th\":256"), 8, "\"th\":256,\"th\":256");
  testing::expect_refusal([&] { Tokenizer::from_json(twice, "t"); }, {"key \"th\" is given twice"});
}

TEST(TokenizerFile, Merges) {
  const auto merge = [](const json& value) {
    return [=](json& file) { file["model"]["merges"].push_back(value); };
  };
  refused([](json& file) { file["model"].erase("merges"); }, {"model: \"merges\" is missing"});
  refused([](json& file) { file["model"]["merges"] = "t h"; }, {"merges: found the string"});
  for (const json& bad :
       {json("th"), json("t h e"), json({"t"}), json({"t", 1}), json(3), json({"t", "h", "e"})})
    refused(merge(bad), {"merges: merge 3", "allowed: \"left right\""});
  refused(merge("q zz"), {"merge 3: \"zz\" is not in the vocabulary"});
  refused(merge("zz q"), {"merge 3: \"zz\" is not in the vocabulary"});
  refused(merge("q z"), {"merge 3: \"qz\" is not in the vocabulary"});
  refused(merge(" q"), {"merge 3: \"\" is not in the vocabulary"});
  refused(merge("t h"), {"merge 3 repeats merge 0"});
}

TEST(TokenizerFile, AddedTokens) {
  const auto add = [](const json& token) {
    return [=](json& file) { file["added_tokens"].push_back(token); };
  };
  allowed(add(added_token(260, "<x>")));
  allowed(add(added_token(256, "th")));  // keeps its id
  refused([](json& file) { file["added_tokens"] = 1; },
          {"added_tokens: found 1; allowed: an array"});
  refused(add(1), {"added_tokens: 1: found 1; allowed: an object"});
  refused(add(added_token(261, "<x>")), {"\"<x>\" has id 261; allowed: 260"});
  refused(add(added_token(5, "th")), {"\"th\" has id 5; allowed: 256"});
  refused(add(added_token(260, "")), {"\"content\" is empty"});
  refused(add(added_token(260, "<|endoftext|>")), {"\"<|endoftext|>\""});
  refused(add(added_token(-1, "<x>")), {"id is -1"});
  for (const char* key :
       {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}) {
    json token = added_token(260, "<x>");
    token.erase(key);
    refused(add(token), {"\"" + std::string(key) + "\" is missing"});
  }
  json token = added_token(260, "<x>");
  token["strip"] = true;
  refused(add(token), {"unknown key \"strip\""});
  json twice = added_token(256, "th");
  refused([&](json& file) { file["added_tokens"] = {twice, twice}; }, {"\"th\" is given twice"});
  // With gaps in the vocabulary the next number may be taken already.
  refused(
      [](json& file) {
        file["model"]["vocab"].erase("q");
        file["added_tokens"][0]["id"] = 258;
      },
      {"id 258 of \"<|endoftext|>\" is that of another token"});
}

void config_refused(const std::string& config, const std::vector<std::string>& parts) {
  testing::expect_refusal(
      [&] { Tokenizer::from_json(small_tokenizer().dump(), "tokenizer.json", config); }, parts);
}

TEST(TokenizerConfig, NamesTheFirstAndTheLastToken) {
  const auto with = [](const char* config) {
    return Tokenizer::from_json(small_tokenizer().dump(), "tokenizer.json", config);
  };
  EXPECT_EQ(with("{}").bos_token_id(), 259);
  EXPECT_EQ(with(R"({"bos_token": null})").bos_token_id(), std::nullopt);
  EXPECT_EQ(with(R"({"bos_token": null})").eos_token_id(), 259);
  EXPECT_EQ(with(R"({"bos_token": "the", "unknown": 1})").bos_token_id(), 257);
  EXPECT_EQ(with(R"({"eos_token": {"content": "th", "lstrip": false}})").eos_token_id(), 256);
  EXPECT_EQ(with(R"({"add_prefix_space": false})").bos_token_id(), 259);
  EXPECT_EQ(
      with(R"({"added_tokens_decoder": {"259": {"content": "<|endoftext|>"}}})").bos_token_id(),
      259);
}

TEST(TokenizerConfig, WhatContradictsTheTokenizerIsRefused) {
  config_refused("[]", {"tokenizer_config.json", "found an array"});
  config_refused(R"({"bos_token": "<s>"})", {"\"bos_token\" is \"<s>\", which is no token"});
  config_refused(R"({"eos_token": 3})", {"\"eos_token\" is 3; allowed: null, a string"});
  config_refused(R"({"eos_token": {"content": 3}})", {"\"eos_token\" is 3"});
  config_refused(R"({"add_prefix_space": true})",
                 {"\"add_prefix_space\" is true, in tokenizer.json it is false"});
  config_refused(R"({"added_tokens_decoder": {"9": {}}})",
                 {"added_tokens_decoder \"9\" has no \"content\""});
  config_refused(R"({"added_tokens_decoder": {"260": {"content": "<x>"}}})",
                 {"\"<x>\" has id \"260\""});
  config_refused(R"({"added_tokens_decoder": {"7": {"content": "th"}}})", {"\"th\" has id \"7\""});
}

}  // namespace
}  // namespace lenscpp
