// What a refusal advises, by device.
#include "verify/advice.h"

#include <gtest/gtest.h>

namespace lenscpp {
namespace {

Point tf32(Op op = Op::linear) {
  return {.id = {Site::q, 0}, .op = op, .hint = std::string(kTf32Hint) + " or float16 (11 bits)"};
}
RunRecord on(const std::string& device) {
  RunRecord record;
  record.device = device;
  record.dtype = "float32";
  return record;
}
bool says(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST(Advice, OnCudaIsTheLineThatTurnsTf32Off) {
  std::string advice = advice_for(tf32(), on("cuda:1"));
  EXPECT_TRUE(says(advice, "torch.backends.cuda.matmul.allow_tf32 = False")) << advice;
  EXPECT_TRUE(says(advice, "matmul_precision=\"tf32\"")) << advice;
}

TEST(Advice, NamesAnEnvironmentThatForcesIt) {
  RunRecord record = on("cuda");
  record.ambient["NVIDIA_TF32_OVERRIDE"] = "1";
  EXPECT_TRUE(says(advice_for(tf32(), record), "unset NVIDIA_TF32_OVERRIDE"));
  record.ambient["NVIDIA_TF32_OVERRIDE"] = "0";
  EXPECT_FALSE(says(advice_for(tf32(), record), "unset NVIDIA_TF32_OVERRIDE"));
}

// A run of this library pins torch's flag: setting it once more would change nothing.
TEST(Advice, OfARunThatWasPinnedIsTheEnvironment) {
  RunRecord record = on("cuda");
  for (const char* pinned : {"ieee", "none"}) {
    record.ambient["cuda_float32_matmul"] = pinned;
    std::string advice = advice_for(tf32(), record);
    EXPECT_TRUE(says(advice, "NVIDIA_TF32_OVERRIDE=0")) << advice;
    EXPECT_FALSE(says(advice, "allow_tf32")) << advice;
  }
  record.ambient["NVIDIA_TF32_OVERRIDE"] = "1";
  EXPECT_TRUE(says(advice_for(tf32(), record), "unset NVIDIA_TF32_OVERRIDE"));
}

TEST(Advice, OnAppleSaysWhatIsKnown) {
  EXPECT_TRUE(says(advice_for(tf32(), on("mps")), "mlx 4411"));
  EXPECT_FALSE(says(advice_for(tf32(), on("mps")), "allow_tf32"));
}

TEST(Advice, IsForProductsOfUndeclaredPrecisionInFloat32Alone) {
  for (Op op : {Op::linear, Op::head_linear, Op::head_result, Op::scores, Op::mix})
    EXPECT_NE(advice_for(tf32(op), on("cpu")), "");
  for (Op op : {Op::softmax, Op::affine, Op::add, Op::activation})
    EXPECT_EQ(advice_for(tf32(op), on("cuda")), "");
  RunRecord record = on("cuda");
  record.matmul_precision = MatmulPrecision::tf32;
  EXPECT_EQ(advice_for(tf32(), record), "");
  record = on("cuda");
  record.dtype = "float64";
  EXPECT_EQ(advice_for(tf32(), record), "");
  Point other = tf32();
  other.hint = "zeros: head 1";
  EXPECT_EQ(advice_for(other, on("cuda")), "");
}

}  // namespace
}  // namespace lenscpp
