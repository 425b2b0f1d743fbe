// The reference alone, from config.json and tensors to logits in float64, against transformers on
// the checkpoints of every family.
#include <gtest/gtest.h>

#include "tests/golden_cases.h"
#include "verify/processing_check.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

// transformers rounds rotary angles to float32 in a float64 model too.
constexpr double kLimit = 1e-5;

class Families : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder = golden::family_folder(GetParam());
};

TEST_P(Families, ComputesTheLogitsOfTransformers) {
  Weights weights = load_weights(folder, DType::f64);
  SafetensorsFile expected = SafetensorsFile::open(folder / "hf.safetensors");
  for (int run : {0, 1}) {
    std::string of_run = "." + std::to_string(run);
    Array tokens = expected.tensor("tokens" + of_run);
    Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), weights.config)};
    Array logits = run_in_float64(weights, request, serial_for);
    EXPECT_LT(golden::normalized_error(logits, expected.tensor("logits" + of_run)), kLimit);
  }
}

TEST_P(Families, LosesNothingWhenProcessed) {
  Weights raw = load_weights(folder, DType::f64);
  EXPECT_NO_THROW(check_processing(raw, process(raw, {}), serial_for));
}

INSTANTIATE_TEST_SUITE_P(All, Families, testing::ValuesIn(golden::family_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
