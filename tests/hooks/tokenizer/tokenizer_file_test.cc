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
  for (const char* key : {"version", "truncation", "padding", "normalizer", "post_processor",
                          "pre_tokenizer", "decoder", "added_tokens"}) {
    allowed([&](json& file) { file.erase(key); });
    allowed([&](json& file) { file[key] = nullptr; });
  }
  refused([](json& file) { file.erase("model"); }, {"tokenizer.json", "\"model\" is missing"});
  refused([](json& file) { file["version"] = "2.0"; }, {"\"version\" is the string \"2.0\""});
  refused([](json& file) { file["trunction"] = 1; },
          {"unknown key \"trunction\"; allowed: added_tokens"});
}

TEST(TokenizerFile, HowItWasLastUsedIsNoMatter) {
  json file = small_tokenizer();
  file["truncation"] = {{"max_length", 1}};
  file["padding"] = {{"strategy", {{"Fixed", 9}}}, {"pad_id", 0}};
  EXPECT_EQ(Tokenizer::from_json(file.dump(), "used").encode("the q").size(), 3U);
  for (const char* key : {"truncation", "padding"})
    refused([&](json& changed) { changed[key] = 8; },
            {"tokenizer.json: " + std::string(key) + ": found 8; allowed: null, an object"});
}

TEST(TokenizerFile, Normalizers) {
  const auto with = [](const json& normalizer) {
    return [=](json& file) { file["normalizer"] = normalizer; };
  };
  allowed(with({{"type", "NFC"}}));
  refused(with({{"type", "ByteLevel"}}),
          {"[tokenizer] tokenizer.json: normalizer: type \"ByteLevel\" is not supported; allowed: "
           "BertNormalizer, Lowercase, NFC"});
  const json inner = {{"type", "Precompiled"}, {"precompiled_charsmap", "AA"}};
  refused(with({{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}, inner}}}),
          {"normalizer: normalizers 1: type \"Precompiled\" is not supported"});
  refused(with({{"type", "Sequence"}, {"normalizers", 1}}), {"\"normalizers\" is 1"});
  refused(with({{"type", "NFC"}, {"form", 1}}), {"normalizer: unknown key \"form\""});
  refused(with({{"type", "Strip"}, {"strip_left", true}}), {"\"strip_right\" is missing"});
  refused(with({{"type", "Replace"}, {"pattern", {{"Regex", "a*"}}}, {"content", ""}}),
          {"normalizer: pattern", "empty string"});
  refused(with({{"type", "Prepend"}, {"prepend", 1}}), {"\"prepend\" is 1"});
  refused(with({{"type", "BertNormalizer"}, {"clean_text", true}}), {"is missing"});
  refused(with(3), {"normalizer: found 3; allowed: an object"});
}

TEST(TokenizerFile, PreTokenizers) {
  refused(
      [](json& file) {
        file["pre_tokenizer"] = {{"type", "UnicodeScripts"}};
      },
      {"[tokenizer] tokenizer.json: pre_tokenizer: type \"UnicodeScripts\" is not supported; "
       "allowed: BertPreTokenizer, ByteLevel, CharDelimiterSplit, Digits, Metaspace"});
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

TEST(TokenizerFile, MetaspaceSaysWhereItsMarkGoes) {
  const auto with = [](const json& fields) {
    return [=](json& file) {
      file["pre_tokenizer"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}};
      file["pre_tokenizer"].update(fields);
    };
  };
  allowed(with({{"add_prefix_space", true}, {"str_rep", "\u2581"}}));
  allowed(with({{"prepend_scheme", "never"}, {"add_prefix_space", false}, {"split", false}}));
  refused(with({{"prepend_scheme", "last"}}),
          {"\"prepend_scheme\" is the string \"last\"; allowed: \"first\", \"never\", \"always\""});
  refused(with({{"add_prefix_space", false}}), {"\"add_prefix_space\" is false"});
  refused(with({{"prepend_scheme", "first"}, {"add_prefix_space", false}}), {"is false"});
  for (const char* replacement : {"", "ab", "\u2581\u2581"})
    refused(with({{"replacement", replacement}}), {"\"replacement\" is", "one character"});
}

json sequence(const std::vector<json>& parts) {
  return {{"type", "Sequence"}, {"pretokenizers", parts}};
}

json split(const json& pattern) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}, {"invert", false}};
}

TEST(TokenizerFile, SequencesHoldOneByteLevel) {
  const json bytes = small_tokenizer()["pre_tokenizer"];
  const json digits = {{"type", "Digits"}, {"individual_digits", true}};
  const json space = split({{"String", " "}});
  for (const auto& parts :
       {std::vector<json>{space, digits, sequence({space}), bytes}, {bytes, space}, {space}, {}})
    allowed([&](json& file) { file["pre_tokenizer"] = sequence(parts); });
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = sequence({bytes, bytes});
      },
      {"pretokenizers 1: a second ByteLevel"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", 1}};
      },
      {"\"pretokenizers\" is 1; allowed: an array"});
  refused(
      [&](json& file) {
        file["pre_tokenizer"] = sequence({{{"type", "Nothing"}}, bytes});
      },
      {"pretokenizers 0", "\"Nothing\""});
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

json template_of(const json& single, const json& pair) {
  return {{"type", "TemplateProcessing"},
          {"single", single},
          {"pair", pair},
          {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {257}}, {"tokens", {"<s>"}}}}}}};
}

TEST(TokenizerFile, PostProcessors) {
  const auto with = [](const json& post) {
    return [=](json& file) { file["post_processor"] = post; };
  };
  const json a = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const json b = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  const json s = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  const json bert = {{"type", "BertProcessing"}, {"sep", {"x", 1}}, {"cls", {"y", 2}}};
  const auto both = [](const json& first, const json& second) {
    return json{{"type", "Sequence"}, {"processors", {first, second}}};
  };
  allowed(with(template_of(json::array({s, a}), json::array({s, a, s, b}))));
  allowed(with(both(template_of(json::array({a}), json::array({a, b})), {{"type", "ByteLevel"}})));
  refused(with(both(template_of(json::array({a}), json::array({a, b})), bert)),
          {"processors 1: \"BertProcessing\" after another that adds tokens"});
  refused(with(template_of(json::array({s}), json::array({a, b}))),
          {"\"single\" does not hold sequence A once"});
  refused(with(template_of(json::array({a}), json::array({a, a}))),
          {"\"pair\" does not hold sequences A and B once each"});
  refused(with(template_of(json::array({a, {{"SpecialToken", {{"id", "<t>"}, {"type_id", 0}}}}}),
                           json::array({a, b}))),
          {"post_processor: single 1: \"<t>\" is not among \"special_tokens\""});
  refused(with(template_of(json::array({{{"Sequence", {{"id", "C"}, {"type_id", 0}}}}}),
                           json::array({a, b}))),
          {"single 0: \"id\" is \"C\"; allowed: \"A\", \"B\""});
  refused(with(template_of(json::array({{{"Sequence", {{"id", "A"}, {"type_id", -1}}}}}),
                           json::array({a, b}))),
          {"\"type_id\" is -1"});
  refused(with(template_of(json::array({json::object()}), json::array({a, b}))),
          {"single 0: allowed: one of"});
  refused(with({{"type", "BertProcessing"}, {"sep", {"x", 999}}, {"cls", {"y", 2}}}),
          {"post_processor: sep: id 999 is that of no token"});
  refused(with({{"type", "BertProcessing"}, {"sep", "x"}, {"cls", {"y", 2}}}),
          {"\"sep\" is the string \"x\"; allowed: [\"spelling\", id]"});
  refused(with({{"type", "X"}}),
          {"post_processor: type \"X\" is not supported; allowed: BertProcessing, ByteLevel"});
  refused(with({{"type", "Sequence"}, {"processors", {{{"type", "X"}}}}}), {"processors 0: type"});
  refused(with({{"type", "Sequence"}, {"processors", 1}}), {"\"processors\" is 1"});
}

TEST(TokenizerFile, Decoders) {
  const auto with = [](const json& decoder) {
    return [=](json& file) { file["decoder"] = decoder; };
  };
  refused(with({{"type", "CTC"}}),
          {"decoder: type \"CTC\" is not supported; allowed: BPEDecoder, ByteFallback, ByteLevel"});
  refused(with({{"type", "Sequence"}, {"decoders", {{{"type", "Fuse"}}, {{"type", "X"}}}}}),
          {"decoder: decoders 1: type \"X\""});
  refused([](json& file) { file["decoder"]["x"] = 1; }, {"decoder: unknown key \"x\""});
  refused(with({{"type", "WordPiece"}, {"prefix", "##"}}), {"\"cleanup\" is missing"});
  refused(with({{"type", "BPEDecoder"}, {"suffix", ""}}), {"\"suffix\" is empty"});
  refused(with({{"type", "Strip"}, {"content", "ab"}, {"start", 0}, {"stop", 0}}),
          {"\"content\" is \"ab\"; allowed: one character"});
  refused(with({{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}}),
          {"\"start\" is -1"});
}

TEST(TokenizerFile, ModelOptions) {
  const auto model = [](const char* key, const json& value) {
    return [=](json& file) { file["model"][key] = value; };
  };
  allowed([](json& file) { file["model"].erase("type"); });
  refused(model("type", "WordLevel"), {"model: type is the string \"WordLevel\"",
                                       "allowed: \"BPE\", \"Unigram\", \"WordPiece\""});
  allowed(model("dropout", 0.0));
  refused(model("dropout", 0.1),
          {"model: \"dropout\" is 0.1, which is not supported; allowed: null, 0.0"});
  allowed(model("continuing_subword_prefix", ""));
  refused(model("continuing_subword_prefix", "##"),
          {"merges: merge 0: \"h\" does not start with \"continuing_subword_prefix\""});
  allowed(model("end_of_word_suffix", ""));
  allowed(model("end_of_word_suffix", "</w>"));
  refused(model("end_of_word_suffix", 1), {"\"end_of_word_suffix\" is 1; allowed: a string"});
  allowed(model("byte_fallback", true));
  refused(
      [](json& file) {
        file["model"]["byte_fallback"] = true;
        file["model"]["end_of_word_suffix"] = "</w>";
      },
      {"\"byte_fallback\" is true beside a prefix or suffix"});
  refused(model("ignore_merges", 1), {"ignore_merges", "1"});
  refused(model("fuse_unk", "x"), {"fuse_unk"});
  refused(model("cache_capacity", 1), {"unknown key \"cache_capacity\""});
  allowed(model("unk_token", "<|endoftext|>"));  // with 256 bytes it can never be produced
  refused(model("unk_token", 1), {"unk_token"});
  refused(
      [](json& file) {
        file["model"]["unk_token"] = "<none>";
        file["model"]["vocab"].erase("q");
      },
      {"\"unk_token\" is \"<none>\", which is not in the vocabulary"});
}

json wordpiece() {
  return {{"type", "WordPiece"},
          {"unk_token", "[UNK]"},
          {"continuing_subword_prefix", "##"},
          {"max_input_chars_per_word", 100},
          {"vocab", {{"[UNK]", 0}, {"a", 1}}}};
}

TEST(TokenizerFile, WordPieceModels) {
  const auto with = [](const char* key, const json& value) {
    return [=](json& file) {
      file = {{"model", wordpiece()}};
      file["model"][key] = value;
    };
  };
  allowed(with("type", "WordPiece"));
  refused(with("unk_token", "[X]"), {"model: \"unk_token\" is \"[X]\", which is not in the voc"});
  refused(with("unk_token", nullptr), {"\"unk_token\" is missing"});
  refused(with("max_input_chars_per_word", -1), {"\"max_input_chars_per_word\" is -1"});
  refused(with("continuing_subword_prefix", 1), {"\"continuing_subword_prefix\" is 1"});
  refused(with("merges", json::array()), {"unknown key \"merges\""});
  refused(with("vocab", {{"a", 0}, {"b", 0}}), {"model: vocab: id 0 is given to"});
}

TEST(TokenizerFile, UnigramModels) {
  const auto with = [](const char* key, const json& value) {
    return [=](json& file) {
      file = json::parse(
          R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["a", -1.5]]}})");
      file["model"][key] = value;
    };
  };
  allowed(with("type", "Unigram"));
  allowed(with("unk_id", nullptr));
  allowed(with("byte_fallback", true));
  refused(with("unk_id", 2), {"\"unk_id\" is 2; allowed: below 2"});
  refused(with("unk_id", -1), {"model: unk_id: id is -1"});
  refused(with("vocab", json::array()), {"vocab: found an array; allowed: an array with at least"});
  refused(with("vocab", {{"a", 0, 0}}),
          {"vocab: 0: found an array; allowed: [\"spelling\", score]"});
  refused(with("vocab", json::parse(R"([["a", 0], ["", 0]])")), {"vocab: 1: found"});
  refused(with("vocab", json::parse(R"([["a", 0], ["a", -1]])")),
          {"vocab: token \"a\" is given twice"});
  refused(with("unk_token", "a"), {"unknown key \"unk_token\""});
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

TEST(TokenizerConfig, AFillerThatIsNoTokenIsNone) {
  const auto with = [](const char* config) {
    return Tokenizer::from_json(small_tokenizer().dump(), "tokenizer.json", config);
  };
  EXPECT_EQ(with(R"({"pad_token": "the"})").pad_token_id(), 257);
  EXPECT_EQ(with(R"({"pad_token": {"content": "th"}})").pad_token_id(), 256);
  for (const char* none : {"{}", R"({"pad_token": null})", R"({"pad_token": "[PAD]"})",
                           R"({"pad_token": {"content": "<pad>"}})"}) {
    EXPECT_EQ(with(none).pad_token_id(), std::nullopt) << none;
    EXPECT_EQ(with(none).eos_token_id(), 259) << none;
  }
  config_refused(R"({"pad_token": 3})", {"\"pad_token\" is 3; allowed: null, a string"});
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
