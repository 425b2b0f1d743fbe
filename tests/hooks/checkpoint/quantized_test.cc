// Quantized checkpoints: recognised by config, by names and by types, and never by accident.
#include "hooks/checkpoint/quantized.h"

#include <gtest/gtest.h>

#include "hooks/checkpoint/weights.h"
#include "tests/hooks/checkpoint/tiny_gpt2.h"

namespace lenscpp {
namespace {

using nlohmann::json;

TEST(Quantized, TheMethodIsNamedHoweverTheConfigSpellsIt) {
  EXPECT_EQ(quantization_method({{"quant_method", "gptq"}, {"bits", 4}}), "gptq, 4 bits");
  EXPECT_EQ(quantization_method({{"quant_method", "awq"}, {"w_bit", 4}}), "awq, 4 bits");
  EXPECT_EQ(quantization_method({{"quant_method", "fp8"}}), "fp8");
  EXPECT_EQ(
      quantization_method(
          {{"quant_method", "bitsandbytes"}, {"load_in_4bit", true}, {"load_in_8bit", false}}),
      "bitsandbytes, 4 bits");
  EXPECT_EQ(quantization_method({{"load_in_8bit", true}}), "bitsandbytes, 8 bits");
  EXPECT_EQ(quantization_method({{"quant_algo", "NVFP4"}}), "NVFP4");
  EXPECT_EQ(quantization_method({{"anything", 1}}), "an unknown method");
  EXPECT_EQ(quantization_method("gptq"), "an unknown method");
}

TEST(Quantized, TensorsBetrayIt) {
  EXPECT_EQ(quantization_of("h.0.attn.c_attn.qweight", "I32"), "gptq or awq");
  EXPECT_EQ(quantization_of("h.0.attn.c_attn.SCB", "F32"), "bitsandbytes, 8 bits");
  EXPECT_EQ(quantization_of("h.0.attn.c_attn.weight.absmax", "F32"), "bitsandbytes, 4 bits");
  EXPECT_EQ(quantization_of("h.0.attn.c_attn.weight_scale_inv", "F32"), "fp8");
  EXPECT_EQ(quantization_of("h.0.attn.c_attn.weight", "F8_E4M3"), "fp8");
  for (const char* dtype : {"I8", "U8"})
    EXPECT_EQ(quantization_of("h.0.attn.c_attn.weight", dtype), "packed or 8-bit integers");
  for (const char* dtype : {"F64", "F32", "F16", "BF16", "I64"})
    EXPECT_FALSE(quantization_of("h.0.attn.c_attn.weight", dtype)) << dtype;
  EXPECT_FALSE(quantization_of("h.0.attn.bias", "U8")) << "a stored mask";
}

class QuantizedCheckpoint : public testing::Test {
 protected:
  std::string refusal() {
    model.write(scratch.path());
    try {
      load_weights(scratch.path(), DType::f32);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  }
  void expect_refused(std::initializer_list<const char*> parts) {
    std::string said = refusal();
    for (const char* part : parts) EXPECT_NE(said.find(part), said.npos) << part << "\n" << said;
    EXPECT_NE(said.find("dequantize()"), said.npos) << said;
  }
  TinyGpt2 model;
  Scratch scratch;
};

TEST_F(QuantizedCheckpoint, IsRefusedByTheConfigsWord) {
  EXPECT_EQ(refusal(), "");
  model.config["quantization_config"] = {{"quant_method", "gptq"}, {"bits", 4}};
  expect_refused({"config.json", "quantization_config", "gptq, 4 bits"});
  model.config.erase("quantization_config");
  model.config["compression_config"] = {{"quant_method", "compressed-tensors"}};
  expect_refused({"compression_config", "compressed-tensors"});
  model.config["compression_config"] = nullptr;
  EXPECT_EQ(refusal(), "");
}

TEST_F(QuantizedCheckpoint, IsRefusedByItsTensorsWhereTheConfigIsSilent) {
  model.tensors["transformer.h.0.attn.c_attn.weight.absmax"] =
      Array::of(std::vector<float>{1}, {1});
  expect_refused({"model.safetensors", "c_attn.weight.absmax", "bitsandbytes, 4 bits"});
}

// As fp8 checkpoints are: the header says so, before any weight is missed.
TEST_F(QuantizedCheckpoint, IsRefusedByTheTypeOfItsWeights) {
  write_file(scratch / "config.json", model.config.dump());
  std::string header =
      R"({"transformer.wte.weight":{"dtype":"F8_E4M3","shape":[2,4],"data_offsets":[0,8]}})";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof size);
  write_file(scratch / "model.safetensors", file + header + std::string(8, 'x'));
  try {
    load_weights(scratch.path(), DType::f32);
    FAIL() << "read";
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(
        std::string(e.what()).find("\"transformer.wte.weight\" of F8_E4M3 is quantized (fp8)"),
        std::string::npos)
        << e.what();
  }
}

}  // namespace
}  // namespace lenscpp
