// The safetensors reader: what it reads, and that it refuses every lie a header can tell.
#include "hooks/checkpoint/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {
namespace {

std::span<const std::byte> as_bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

SafetensorsFile parse(const std::string& header, const std::string& data = "") {
  static std::vector<std::string> kept;  // arrays point into the bytes
  kept.push_back(raw_safetensors(header, data));
  return parse_safetensors(as_bytes(kept.back()), "a file");
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

std::string floats(std::vector<float> values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

void expect_header_refused(const std::string& header, const std::string& data,
                           std::initializer_list<std::string> parts) {
  expect_refused([&] { parse(header, data); }, parts);
  expect_refused([&] { parse(header, data); }, {"[safetensors] a file"});
}

// ---- what is read ----

TEST(Safetensors, ReadsTensorsAndMetadata) {
  SafetensorsFile file =
      parse("{\"__metadata__\":{\"format\":\"pt\"}," + entry("x", "F32", "[2,1]", 0, 8) + "," +
                entry("s", "F32", "[]", 8, 12) + "}  ",
            floats({1.5f, -2, 7}));
  EXPECT_EQ(file.names(), (std::vector<std::string>{"s", "x"}));
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensor("x").shape(), (Shape{2, 1}));
  EXPECT_EQ(file.tensor("x")[1], -2);
  EXPECT_EQ(file.tensor("s")[0], 7);
}

TEST(Safetensors, ReadsTensorsInAnyOrderOfTheHeaderAndEmptyOnes) {
  SafetensorsFile file =
      parse("{" + entry("b", "F32", "[1]", 4, 8) + "," + entry("a", "F32", "[1]", 0, 4) + "," +
                entry("none", "F32", "[0,3]", 4, 4) + "," + entry("end", "I64", "[0]", 8, 8) + "}",
            floats({1, 2}));
  EXPECT_EQ(file.tensor("a")[0], 1);
  EXPECT_EQ(file.tensor("b")[0], 2);
  EXPECT_TRUE(file.tensor("none").empty());
  EXPECT_TRUE(file.tensor("end").empty());
}

TEST(Safetensors, ReadsAFileWithoutTensors) { EXPECT_TRUE(parse("{}").names().empty()); }

TEST(Safetensors, CopiesTensorsThatLieUnaligned) {
  // One byte before the floats; and each parity of the header's length.
  for (std::string padding : {"", " ", "  ", "   "}) {
    SafetensorsFile file = parse(
        "{" + entry("u", "U8", "[1]", 0, 1) + "," + entry("x", "F32", "[2]", 1, 9) + "}" + padding,
        "z" + floats({3, 4}));
    Array x = file.tensor("x");
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.bytes()) % 4, 0u);
    EXPECT_EQ(x[0], 3);
    EXPECT_EQ(x[1], 4);
  }
}

TEST(Safetensors, CarriesTypesThatCannotBeReadAndSaysSoWhenTheyAre) {
  for (auto [dtype, bytes] : std::map<std::string, int>{{"BOOL", 1},
                                                        {"U8", 1},
                                                        {"I8", 1},
                                                        {"U16", 2},
                                                        {"I16", 2},
                                                        {"U32", 4},
                                                        {"I32", 4},
                                                        {"U64", 8}}) {
    SafetensorsFile file = parse("{" + entry("mask", dtype, "[2]", 0, 2 * bytes) + "}",
                                 std::string(static_cast<std::size_t>(2 * bytes), '\0'));
    EXPECT_TRUE(file.has("mask"));
    expect_refused([&] { file.tensor("mask"); }, {"\"mask\"", dtype, "F64 F32 F16 BF16 I64"});
  }
}

TEST(Safetensors, AnUnknownNameIsRefusedWithTheNearest) {
  SafetensorsFile file = parse("{" + entry("wte.weight", "F32", "[1]", 0, 4) + "}", floats({1}));
  expect_refused([&] { file.tensor("wte.weigth"); },
                 {"a file", "\"wte.weigth\"", "\"wte.weight\""});
}

TEST(Safetensors, ArraysOutliveTheFileObjectAndItsName) {
  Scratch scratch;
  Array array;
  {
    write_safetensors(scratch / "x.safetensors",
                      {{"x", Array::of(std::vector<float>{1, 2, 3}, {3})}});
    SafetensorsFile file = SafetensorsFile::open(scratch / "x.safetensors");
    array = file.tensor("x");
    std::filesystem::remove(scratch / "x.safetensors");
  }
  EXPECT_EQ(array[2], 3);
}

// ---- what is refused ----

TEST(SafetensorsRefuses, FilesShorterThanEightBytes) {
  Scratch scratch;
  for (std::size_t size : {0u, 1u, 7u}) {
    write_file(scratch / "short.safetensors", std::string(size, '\1'));
    expect_refused([&] { SafetensorsFile::open(scratch / "short.safetensors"); },
                   {"short.safetensors", std::to_string(size) + " bytes", "at least 8"});
    expect_refused([&] { parse_safetensors(as_bytes(std::string(size, '\1')), "memory"); },
                   {"memory"});
  }
}

TEST(SafetensorsRefuses, HeadersLongerThanTheFile) {
  std::string bytes = raw_safetensors("{}", "");
  bytes[0] = 3;
  expect_refused([&] { parse_safetensors(as_bytes(bytes), "a file"); },
                 {"claims 3 bytes", "2 follow"});
}

TEST(SafetensorsRefuses, HeadersBeyondAHundredMegabytesHoweverTheyOverflow) {
  for (std::uint64_t claim : {std::uint64_t{100'000'001}, ~std::uint64_t{0}, ~std::uint64_t{0} - 7,
                              std::uint64_t{1} << 63}) {
    std::string bytes = raw_safetensors("{}", "");
    std::memcpy(bytes.data(), &claim, 8);
    expect_refused([&] { parse_safetensors(as_bytes(bytes), "a file"); },
                   {"claims " + std::to_string(claim), "100000000"});
  }
}

TEST(SafetensorsRefuses, HeadersThatAreNoJsonObject) {
  for (std::string header : {"", "[]", "\"x\"", "1", " {}", "\xef\xbb\xbf{}"})
    expect_header_refused(header, "", {"does not begin with {"});
  for (std::string header :
       {"{", "{}}", "{\"x\"}", "{\"x\":}", "{'x':1}", "{}x", "{\"x\":1e999}", "{\"x\":NaN}", "{,}"})
    expect_header_refused(header, "", {"header", "not JSON"});
  expect_header_refused(std::string("{}\0", 3), "", {"not JSON", "NUL"});
  expect_header_refused(std::string("{}\0{\"x\":", 8), "", {"not JSON", "NUL"});
}

TEST(SafetensorsRefuses, HeadersThatAreNotUtf8) {
  for (std::string name : {"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf5\x80\x80\x80", "\xe2\x82"})
    expect_header_refused("{" + entry(name, "F32", "[1]", 0, 4) + "}", floats({1}), {"UTF-8"});
  expect_header_refused("{\"\\ud800\":1}", "", {"not JSON"});  // half a surrogate pair
}

TEST(SafetensorsRefuses, DuplicateKeysAtEveryLevel) {
  expect_header_refused(
      "{" + entry("x", "F32", "[1]", 0, 4) + "," + entry("x", "F32", "[1]", 4, 8) + "}",
      floats({1, 2}), {"\"x\"", "twice"});
  expect_header_refused(
      "{\"x\":{\"dtype\":\"F32\",\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[0,4]}}",
      floats({1}), {"\"dtype\"", "twice"});
  expect_header_refused("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", "", {"\"a\"", "twice"});
}

TEST(SafetensorsRefuses, BottomlessNesting) {
  std::string deep = "{\"x\":" + std::string(1'000'000, '[');
  expect_header_refused(deep, "", {"deeper than 64"});
}

TEST(SafetensorsRefuses, TensorsWithoutDtypeShapeOrOffsets) {
  expect_header_refused("{\"x\":{\"shape\":[1],\"data_offsets\":[0,4]}}", floats({1}),
                        {"\"x\"", "has no dtype"});
  expect_header_refused("{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", floats({1}),
                        {"\"x\"", "has no shape"});
  expect_header_refused("{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}", floats({1}),
                        {"\"x\"", "has no data_offsets"});
  for (std::string value : {"null", "[]", "\"F32\"", "4"})
    expect_header_refused("{\"x\":" + value + "}", "", {"\"x\"", "an object with dtype"});
}

TEST(SafetensorsRefuses, FieldsOfTensorsThatItDoesNotKnow) {
  expect_header_refused(
      "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"zip\":1}}", floats({1}),
      {"\"x\"", "\"zip\"", "allowed"});
}

TEST(SafetensorsRefuses, UnknownDtypesNamingTheAllowed) {
  for (std::string dtype : {"F4", "f32", "", "F128", "float32", "C64"})
    expect_header_refused("{" + entry("x", dtype, "[1]", 0, 4) + "}", floats({1}),
                          {"\"x\"", "\"" + dtype + "\"", "F64 F32 F16 BF16 I64", "BOOL"});
  expect_header_refused("{\"x\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", floats({1}),
                        {"\"x\"", "dtype", "string"});
}

TEST(SafetensorsRefuses, ShapesThatAreNotNonNegativeIntegers) {
  for (std::string shape : {"[-1]", "[1.0]", "[\"1\"]", "[null]", "[18446744073709551615]", "[[1]]",
                            "[99999999999999999999999]", "[true]"})
    expect_header_refused("{" + entry("x", "F32", shape, 0, 4) + "}", floats({1}),
                          {"\"x\"", "extent"});
  for (std::string shape : {"{}", "1", "null"})
    expect_header_refused("{" + entry("x", "F32", shape, 0, 4) + "}", floats({1}),
                          {"\"x\"", "shape"});
}

TEST(SafetensorsRefuses, ShapesWhoseSizeOverflows) {
  // 2^62 floats are 2^64 bytes, which is 0 in 64 bits.
  for (std::string shape : {"[4611686018427387904]", "[2147483648,2147483648]",
                            "[9223372036854775807,2]", "[4294967296,4294967296,0]"})
    expect_header_refused("{" + entry("x", "F32", shape, 0, 0) + "}", "", {"\"x\"", "2^63"});
}

TEST(SafetensorsRefuses, OffsetsThatAreNotTwoNonNegativeIntegers) {
  for (std::string offsets : {"[]", "[0]", "[0,4,8]", "{}", "null", "4", "[0,-4]", "[0,4.0]",
                              "[\"0\",\"4\"]", "[0,18446744073709551615]"})
    expect_header_refused(
        "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" + offsets + "}}", floats({1}),
        {"\"x\"", "data_offsets"});
}

TEST(SafetensorsRefuses, SizesThatDoNotMatchTheShape) {
  expect_header_refused("{" + entry("x", "F32", "[2]", 0, 4) + "}", floats({1}),
                        {"\"x\"", "0..4", "4 bytes", "F32 [2]", "8"});
  expect_header_refused("{" + entry("x", "F16", "[1]", 0, 4) + "}", floats({1}),
                        {"\"x\"", "needs 2"});
}

TEST(SafetensorsRefuses, DecreasingOffsets) {
  expect_header_refused("{" + entry("x", "F32", "[1]", 8, 4) + "}", floats({1, 2}),
                        {"\"x\"", "8..4", "decrease"});
}

TEST(SafetensorsRefuses, OverlapsNamingBoth) {
  expect_header_refused(
      "{" + entry("x", "F32", "[2]", 0, 8) + "," + entry("y", "F32", "[2]", 4, 12) + "}",
      floats({1, 2, 3}), {"\"y\"", "4..12", "overlap", "\"x\"", "0..8"});
  expect_header_refused(
      "{" + entry("x", "F32", "[1]", 0, 4) + "," + entry("y", "F32", "[1]", 0, 4) + "}",
      floats({1}), {"overlap"});
  // An empty tensor in the middle of another belongs to both.
  expect_header_refused(
      "{" + entry("x", "F32", "[2]", 0, 8) + "," + entry("y", "F32", "[0]", 4, 4) + "}",
      floats({1, 2}), {"overlap"});
}

TEST(SafetensorsRefuses, Gaps) {
  expect_header_refused(
      "{" + entry("x", "F32", "[1]", 0, 4) + "," + entry("y", "F32", "[1]", 8, 12) + "}",
      floats({1, 2, 3}), {"\"y\"", "gap", "4..8"});
  expect_header_refused("{" + entry("x", "F32", "[1]", 4, 8) + "}", floats({1, 2}),
                        {"\"x\"", "gap", "0..4"});
}

TEST(SafetensorsRefuses, OffsetsBeyondTheFile) {
  expect_header_refused("{" + entry("x", "F32", "[2]", 0, 8) + "}", floats({1}),
                        {"\"x\"", "0..8", "4 bytes"});
}

TEST(SafetensorsRefuses, BytesBeyondTheLastTensor) {
  expect_header_refused("{" + entry("x", "F32", "[1]", 0, 4) + "}", floats({1, 2}),
                        {"4 bytes beyond the last tensor"});
  expect_header_refused("{}", "x", {"1 bytes beyond"});
}

TEST(SafetensorsRefuses, MetadataThatIsNotStrings) {
  expect_header_refused("{\"__metadata__\":[]}", "", {"__metadata__", "object"});
  expect_header_refused("{\"__metadata__\":{\"step\":3}}", "",
                        {"__metadata__", "\"step\"", "string"});
}

TEST(SafetensorsRefuses, WhatIsNotARegularFileNamingThePath) {
  Scratch scratch;
  expect_refused<std::system_error>([&] { SafetensorsFile::open(scratch / "missing.safetensors"); },
                                    {"missing.safetensors"});
  expect_refused<std::system_error>([&] { SafetensorsFile::open(scratch.path()); },
                                    {scratch.path().string()});
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  expect_refused<std::system_error>([&] { SafetensorsFile::open(scratch / "pipe"); }, {"pipe"});
  expect_refused<std::system_error>([&] { SafetensorsFile::open(""); }, {"[safetensors]"});
}

TEST(SafetensorsRefuses, EveryTruncationOfAGoodFile) {
  Scratch scratch;
  write_safetensors(scratch / "x", {{"x", Array::of(std::vector<float>{1, 2}, {2})},
                                    {"y", Array::of(std::vector<double>{3}, {1})}});
  std::ifstream stream(scratch / "x", std::ios::binary);
  std::string whole((std::istreambuf_iterator<char>(stream)), {});
  EXPECT_NO_THROW(parse_safetensors(as_bytes(whole), "whole"));
  for (std::size_t size = 0; size < whole.size(); ++size)
    EXPECT_THROW(parse_safetensors(as_bytes(whole.substr(0, size)), "cut"), std::invalid_argument)
        << size;
  EXPECT_THROW(parse_safetensors(as_bytes(whole + "x"), "longer"), std::invalid_argument);
}

TEST(Safetensors, ReadsAHundredThousandTensorsInLinearTime) {
  // The JSON library's own callback parser takes quadratic time here.
  std::string header = "{";
  for (int i = 0; i < 100'000; ++i)
    header += (i ? "," : "") + entry("t" + std::to_string(i), "F32", "[0]", 0, 0);
  EXPECT_EQ(parse(header + "}").names().size(), 100'000u);
}

// ---- writing ----

TEST(WriteSafetensors, RoundTripsEveryDtypeBitwise) {
  Scratch scratch;
  std::vector<double> values{1, -2.5, 0.1, 1e-300};
  std::map<std::string, Array> tensors;
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    tensors[std::string(name_of(dtype))] = Array::of(values, {2, 2}).to(dtype);
  tensors["ids"] = Array::of(std::vector<std::int64_t>{1, -1, INT64_MAX}, {3});
  tensors["empty"] = Array::of(std::vector<float>{}, {0, 4});
  tensors["scalar"] = Array::of(std::vector<float>{5}, {});
  tensors["odd"] = Array::of(std::vector<double>{1, 2, 3}, {3}).to(DType::bf16);
  tensors["name with \"quotes\", \n and \xc3\xa9"] = Array::of(std::vector<float>{6}, {1});
  std::map<std::string, std::string> metadata{{"format", "pt"}, {"note", "\xe2\x9c\x93"}};
  write_safetensors(scratch / "all.safetensors", tensors, metadata);

  SafetensorsFile file = SafetensorsFile::open(scratch / "all.safetensors");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.tensors().size(), tensors.size());
  for (const auto& [name, array] : tensors) {
    EXPECT_EQ(file.tensor(name).digest(), array.digest()) << name;
    Array once = file.tensor(name), again = file.tensor(name);
    EXPECT_EQ(once.bytes(), again.bytes()) << name << " had to be copied to be aligned";
  }
}

TEST(WriteSafetensors, ReplacesAFileWholeAndLeavesNothingElse) {
  Scratch scratch;
  write_safetensors(scratch / "x.safetensors", {{"x", Array::of(std::vector<float>{1}, {1})}});
  Array old = SafetensorsFile::open(scratch / "x.safetensors").tensor("x");
  write_safetensors(scratch / "x.safetensors", {{"x", Array::of(std::vector<float>{2}, {1})}});
  EXPECT_EQ(old[0], 1);  // the old file lives on under its readers
  EXPECT_EQ(SafetensorsFile::open(scratch / "x.safetensors").tensor("x")[0], 2);
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(scratch.path()))
    ++files;
  EXPECT_EQ(files, 1u);
}

TEST(WriteSafetensors, RefusesWhatCannotBeRead) {
  Scratch scratch;
  Array one = Array::of(std::vector<float>{1}, {1});
  expect_refused(
      [&] {
        write_safetensors(scratch / "x", {{"__metadata__", one}});
      },
      {"__metadata__"});
  expect_refused([&] { write_safetensors(scratch / "x", {{"\xff", one}}); }, {"UTF-8"});
  expect_refused(
      [&] {
        write_safetensors(scratch / "x", {{"a", one}}, {{"k", "\xff"}});
      },
      {"UTF-8"});
  expect_refused(
      [&] {
        write_safetensors(scratch / "x", {{"a", Array()}});
      },
      {"\"a\"", "no array"});
  expect_refused<std::system_error>(
      [&] {
        write_safetensors(scratch / "no/folder/x", {{"a", one}});
      },
      {"no/folder"});
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

TEST(WriteSafetensors, LeavesNoTemporaryFileWhenRenamingFails) {
  Scratch scratch;
  std::filesystem::create_directories(scratch / "x/in the way");
  expect_refused<std::system_error>(
      [&] {
        write_safetensors(scratch / "x", {{"a", Array::of(std::vector<float>{1}, {1})}});
      },
      {"x"});
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(scratch.path()))
    ++files;
  EXPECT_EQ(files, 1u);
}

// ---- folders ----

class CheckpointTest : public testing::Test {
 protected:
  void shard(const std::string& name, std::initializer_list<std::string> tensors) {
    std::map<std::string, Array> arrays;
    for (const std::string& tensor : tensors)
      arrays[tensor] = Array::of(std::vector<float>{static_cast<float>(tensor[0])}, {1});
    write_safetensors(folder_ / name, arrays);
  }
  void index(const std::string& weight_map) {
    write_file(folder_ / "model.safetensors.index.json",
               "{\"metadata\":{\"total_size\":8},\"weight_map\":" + weight_map + "}");
  }
  void expect_folder_refused(std::initializer_list<std::string> parts) {
    expect_refused([&] { Checkpoint::open(folder_.path()); }, parts);
  }
  Scratch folder_;
};

TEST_F(CheckpointTest, OneFileAndShardsReadAlike) {
  shard("model.safetensors", {"a", "b"});
  Checkpoint single = Checkpoint::open(folder_.path());
  EXPECT_EQ(single.names(), (std::vector<std::string>{"a", "b"}));
  std::filesystem::remove(folder_ / "model.safetensors");
  shard("one.safetensors", {"a"});
  shard("two.safetensors", {"b"});
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  Checkpoint sharded = Checkpoint::open(folder_.path());
  EXPECT_EQ(sharded.names(), single.names());
  EXPECT_EQ(sharded.tensor("b")[0], single.tensor("b")[0]);
  EXPECT_EQ(sharded.info("b").dtype, "F32");
  EXPECT_TRUE(sharded.has("a"));
  EXPECT_FALSE(sharded.has("c"));
  EXPECT_NE(sharded.origin("b").find("two.safetensors"), std::string::npos);
  expect_refused([&] { sharded.tensor("c"); }, {"\"c\"", "\"a\""});
}

TEST_F(CheckpointTest, ShardsMayBeSymbolicLinks) {  // as in the Hub's cache
  Scratch elsewhere;
  write_safetensors(elsewhere / "blob", {{"a", Array::of(std::vector<float>{1}, {1})}});
  std::filesystem::create_symlink(elsewhere / "blob", folder_ / "one.safetensors");
  index(R"({"a":"one.safetensors"})");
  EXPECT_EQ(Checkpoint::open(folder_.path()).tensor("a")[0], 1);
}

TEST_F(CheckpointTest, RefusesAMissingShardByName) {
  shard("one.safetensors", {"a"});
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_folder_refused({"\"two.safetensors\"", "missing"});
}

TEST_F(CheckpointTest, RefusesTensorsMissingFromTheirShard) {
  shard("one.safetensors", {"a"});
  index(R"({"a":"one.safetensors","b":"one.safetensors"})");
  expect_folder_refused({"\"b\"", "\"one.safetensors\""});
}

TEST_F(CheckpointTest, RefusesTensorsInAnotherShardThanTheIndexSays) {
  shard("one.safetensors", {"a", "b"});
  shard("two.safetensors", {"c"});
  index(R"({"a":"one.safetensors","b":"two.safetensors","c":"two.safetensors"})");
  expect_folder_refused({"\"b\"", "\"one.safetensors\"", "\"two.safetensors\""});
}

TEST_F(CheckpointTest, RefusesTensorsInTwoShards) {
  shard("one.safetensors", {"a"});
  shard("two.safetensors", {"a", "b"});
  index(R"({"a":"one.safetensors","b":"two.safetensors"})");
  expect_folder_refused({"\"a\"", "\"one.safetensors\"", "\"two.safetensors\""});
}

TEST_F(CheckpointTest, RefusesTensorsThatTheIndexDoesNotName) {
  shard("one.safetensors", {"a", "b"});
  index(R"({"a":"one.safetensors"})");
  expect_folder_refused({"\"b\"", "does not name"});
}

TEST_F(CheckpointTest, RefusesShardsOutsideTheFolder) {
  for (std::string path : {"../one.safetensors", "/etc/passwd", "..", ".", "",
                           "sub/one.safetensors", "a\\\\b", "one\\u0000.safetensors"}) {
    index("{\"a\":\"" + path + "\"}");
    expect_folder_refused({"\"a\"", "not the name of a file in this folder"});
  }
}

TEST_F(CheckpointTest, RefusesAnIndexThatIsNone) {
  for (std::string map : {"[]", "null", "\"x\"", "{\"a\":1}", "{\"a\":null}", "{}"}) {
    index(map);
    expect_folder_refused({"model.safetensors.index.json"});
  }
  index(R"({"a":"one.safetensors","a":"two.safetensors"})");
  expect_folder_refused({"\"a\"", "twice"});
  write_file(folder_ / "model.safetensors.index.json", "[]");
  expect_folder_refused({"weight_map"});
  write_file(folder_ / "model.safetensors.index.json", "{");
  expect_folder_refused({"model.safetensors.index.json", "not JSON"});
}

TEST_F(CheckpointTest, RefusesAFileBesideAnIndex) {
  shard("model.safetensors", {"a"});
  index(R"({"a":"model.safetensors"})");
  expect_folder_refused({"both", "model.safetensors.index.json"});
}

TEST_F(CheckpointTest, RefusesPickledWeightsWithTheLineThatConvertsThem) {
  for (std::string name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    write_file(folder_ / name, "x");
    expect_folder_refused(
        {name, "python -c", "save_pretrained", "safe_serialization", folder_.path().string()});
    std::filesystem::remove(folder_ / name);
  }
  for (std::string name : {"weights.bin", "model.pt", "consolidated.00.pth", "last.ckpt"}) {
    write_file(folder_ / name, "x");
    expect_folder_refused({name, "python -c", "torch.load", "weights_only=True", "save_file",
                           (folder_ / "model.safetensors").string()});
    std::filesystem::remove(folder_ / name);
  }
}

TEST_F(CheckpointTest, RefusesFoldersThatAreEmptyMissingOrNone) {
  expect_refused<std::system_error>([&] { Checkpoint::open(folder_.path()); },
                                    {folder_.path().string(), "model.safetensors"});
  expect_refused<std::system_error>([&] { Checkpoint::open(folder_ / "nowhere"); }, {"nowhere"});
  write_file(folder_ / "file", "x");
  expect_refused<std::system_error>([&] { Checkpoint::open(folder_ / "file"); }, {"file"});
}

}  // namespace
}  // namespace lenscpp
