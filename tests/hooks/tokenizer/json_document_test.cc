// Hostile JSON ends in an exception that names the place.
#include "hooks/tokenizer/json_document.h"

#include <gtest/gtest.h>

#include "tests/hooks/tokenizer/expect_refusal.h"

namespace lenscpp {
namespace {

using testing::expect_refusal;
using tokenizing::parse_json_object;
using tokenizing::StrictObject;

void expect_parse_refusal(const std::string& text, const std::vector<std::string>& parts) {
  SCOPED_TRACE(text.substr(0, 40));
  expect_refusal([&] { parse_json_object(text, "f.json"); }, parts);
}

TEST(JsonDocument, ParsesWhatJsonIs) {
  const auto value =
      parse_json_object(R"({"a": [1, -2, 2.5, true, null, {"b": "\u00e9"}], "c": {}})", "f");
  EXPECT_EQ(value.dump(), R"({"a":[1,-2,2.5,true,null,{"b":"é"}],"c":{}})");
}

TEST(JsonDocument, BadSyntaxIsRefused) {
  for (const char* text :
       {"", "{", "{\"a\":}", "{\"a\":1,}", "{'a':1}", "{} x", "{\"a\":01}", "nul",
        "{\"a\":\"\xff\"}", "{\"a\":\"\\ud800\"}", "{\"a\":NaN}", "{\"a\":1e999}"})
    expect_parse_refusal(text, {"f.json", "not JSON at byte"});
}

TEST(JsonDocument, OnlyObjectsAreAllowedAtTheTop) {
  expect_parse_refusal("[1]", {"found an array; allowed: an object"});
  expect_parse_refusal("\"x\"", {"found the string \"x\""});
  expect_parse_refusal("17", {"found 17"});
}

TEST(JsonDocument, AKeyGivenTwiceIsRefused) {
  expect_parse_refusal(R"({"a": 1, "b": {"x": 1, "x": 1}})", {"key \"x\" is given twice"});
}

TEST(JsonDocument, DepthIsBounded) {
  expect_parse_refusal("{\"a\":" + std::string(100'000, '['), {"deeper than 64 levels"});
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  expect_parse_refusal(objects, {"deeper than 64 levels"});
}

TEST(StrictObject, WrongTypesAndUnreadKeysAreRefused) {
  const auto value = nlohmann::json::parse(R"({"n": 1, "s": "x", "b": true, "null": null})");
  StrictObject object(value, "here");
  EXPECT_EQ(object.required_string("s"), "x");
  EXPECT_TRUE(object.required_bool("b"));
  EXPECT_EQ(object.optional("null"), nullptr);
  EXPECT_TRUE(object.bool_or("absent", true));
  object.only("s", "x");
  expect_refusal([&] { object.required("absent"); }, {"here", "\"absent\" is missing"});
  expect_refusal([&] { object.required_bool("null"); }, {"\"null\" is missing"});
  expect_refusal([&] { object.required_bool("n"); }, {"\"n\" is 1; allowed: true, false"});
  expect_refusal([&] { object.required_string("b"); }, {"\"b\" is true; allowed: a string"});
  expect_refusal([&] { object.only("s", "y"); }, {"\"s\" is the string \"x\"", "\"y\""});
  object.finish();
  StrictObject again(value, "here");
  again.optional("s");
  expect_refusal([&] { again.finish(); }, {"unknown key \"b\"; allowed: s"});
  expect_refusal([&] { StrictObject(value["n"], "here"); }, {"found 1; allowed: an object"});
}

}  // namespace
}  // namespace lenscpp
