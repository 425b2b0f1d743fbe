// Strict JSON and the files it comes from.
#include "hooks/checkpoint/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {
namespace {

TEST(ParseJson, BuildsTheSameDocumentAsTheLibrary) {
  for (std::string text :
       {"null", "true", "-3", "18446744073709551615", "1.5e-3", "\"\\u00e9\\n\"", "[]", "{}",
        R"({"a":[1,[2,{"b":[]}],{}],"c":{"d":{"e":null}},"f":"g"})", " [ 1 , 2 ] "})
    EXPECT_EQ(parse_json(text, "x"), nlohmann::json::parse(text)) << text;
}

TEST(ParseJson, RefusesDuplicateKeysNamingThem) {
  expect_refused([] { parse_json(R"({"a":1,"b":{"a":1,"c":2,"c":3}})", "origin"); },
                 {"origin", "\"c\"", "twice"});
  EXPECT_NO_THROW(parse_json(R"([{"a":1},{"a":1},{"a":{"a":1}}])", "x"));
}

TEST(ParseJson, RefusesWhatIsNotJsonNamingThePlace) {
  for (std::string text : {"", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "\"\t\"", "\"\xff\"", "NaN",
                           "-", "1e999", "// c\n1", "'a'", "01"})
    expect_refused([&] { parse_json(text, "origin"); }, {"origin", "not JSON"});
  expect_refused([] { parse_json(std::string("1\0", 2), "origin"); }, {"origin", "NUL", "byte 1"});
}

TEST(ParseJson, RefusesNestingDeeperThanSixtyFour) {
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "x"));
  expect_refused([] { parse_json(std::string(65, '[') + std::string(65, ']'), "origin"); },
                 {"origin", "64"});
}

TEST(ParseJson, ItsMessagesAreAscii) {
  try {
    parse_json("\"\xff\xfe", "x");
    FAIL();
  } catch (const std::invalid_argument& error) {
    for (const char* c = error.what(); *c; ++c) EXPECT_GE(*c, 0x20) << error.what();
  }
}

TEST(Show, CutsLongValues) {
  EXPECT_EQ(show({{"a", 1}}), R"({"a":1})");
  EXPECT_EQ(show(std::string(1000, 'x')).size(), 203u);
}

TEST(ReadText, ReadsAFileAndRefusesOthers) {
  Scratch scratch;
  write_file(scratch / "a", std::string(100'000, 'x'));
  EXPECT_EQ(read_text(scratch / "a", 100'000).size(), 100'000u);
  expect_refused([&] { read_text(scratch / "a", 99'999); }, {"a", "99999"});
  expect_refused<std::system_error>([&] { read_text(scratch / "b", 10); }, {"/b"});
  expect_refused<std::system_error>([&] { read_text(scratch.path(), 10); },
                                    {scratch.path().string()});
}

}  // namespace
}  // namespace lenscpp
