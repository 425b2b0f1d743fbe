// Merged weights against peft's own merge, and the check that stands behind every load.
#include "verify/adapter_check.h"

#include <gtest/gtest.h>

#include <cmath>

#include "hooks/checkpoint/loading.h"
#include "tests/golden_cases.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

std::filesystem::path folder(const std::string& name) {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/adapters" / name;
}

struct Loaded {
  Weights weights;
  std::vector<MergedTensor> merged;
};
Loaded load(const std::string& name, DType dtype) {
  Adapter adapter = Adapter::open(folder(name) / "adapter");
  std::vector<MergedTensor> merged;
  Loading loading{.dtype = dtype, .adapter = &adapter, .on_merged = [&](const MergedTensor& m) {
                    check_merged(m, serial_for);
                    merged.push_back(m);
                  }};
  Weights weights = load_weights(folder(name), loading);
  return {std::move(weights), std::move(merged)};
}

class Adapted : public testing::TestWithParam<std::string> {};

double error_against_peft(const std::string& name, const Weights& weights) {
  auto golden = SafetensorsFile::open(folder(name) / "merged.safetensors");
  Array tokens = golden.tensor("tokens");
  Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), weights.config)};
  return golden::normalized_error(run_in_float64(weights, request, serial_for),
                                  golden.tensor("logits"));
}

TEST_P(Adapted, ComputesWhatPeftsMergeComputes) {
  EXPECT_LE(error_against_peft(GetParam(), load(GetParam(), DType::f64).weights), 1e-7);
  EXPECT_LE(error_against_peft(GetParam(), load(GetParam(), DType::f32).weights), 1e-5);
  EXPECT_GT(error_against_peft(GetParam(), load_weights(folder(GetParam()), DType::f64)), 1e-2);
}

TEST_P(Adapted, IsCheckedInEveryDtype) {
  for (DType dtype : {DType::f64, DType::f32, DType::bf16, DType::f16})
    EXPECT_FALSE(load(GetParam(), dtype).merged.empty());
}

// The largest error that rounding allows, doubled: found wherever it is.
TEST_P(Adapted, IsRefusedWhenOneElementOfAnyMergedWeightIsWrong) {
  for (DType dtype : {DType::f32, DType::bf16})
    for (const MergedTensor& good : load(GetParam(), dtype).merged) {
      ASSERT_NO_THROW(check_merged(good, serial_for)) << good.name;
      for (std::int64_t at : {std::int64_t{0}, good.result.numel() - 1}) {
        double value = good.result[at];
        for (double wrong : {value * (1 + 4 * unit_roundoff(dtype)) + 1e-5, -value - 1.0,
                             std::nan(""), HUGE_VAL}) {
          MergedTensor bad = good;
          MutableArray changed(good.result);
          changed.set(at, wrong);
          bad.result = std::move(changed).freeze();
          EXPECT_THROW(check_merged(bad, serial_for), std::runtime_error) << good.name << wrong;
        }
      }
    }
}

// Every ingredient left out or taken wrongly.
TEST_P(Adapted, IsRefusedWhenMergedAnotherWay) {
  for (const MergedTensor& good : load(GetParam(), DType::f32).merged) {
    auto refused = [&](const char* what, const std::function<void(MergedTensor&)>& change) {
      MergedTensor bad = good;
      change(bad);
      EXPECT_THROW(check_merged(bad, serial_for), std::runtime_error) << good.name << what;
    };
    refused("nothing merged", [](MergedTensor& m) { m.result = m.base.to(m.result.dtype()); });
    refused("empty", [](MergedTensor& m) { m.result = Array(); });
    refused("short", [](MergedTensor& m) { m.result = m.result.rows(1, m.result.size(0)); });
    if (!good.replacement.empty()) continue;
    if (good.rank != 1)
      refused("scaling", [](MergedTensor& m) { m.rank_stabilized = !m.rank_stabilized; });
    refused("alpha", [](MergedTensor& m) { m.alpha += 1; });
    refused("another base", [](MergedTensor& m) {
      MutableArray base(m.base);
      base.set(1, base.get(1) + 0.01);
      m.base = std::move(base).freeze();
    });
    if (!good.magnitude.empty())
      refused("magnitude", [](MergedTensor& m) { m.magnitude = Array(); });
    if (good.base.size(0) == good.base.size(1))
      refused("transposed", [](MergedTensor& m) { m.in_out = !m.in_out; });
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Adapted,
                         testing::Values("gpt2_lora", "gpt2_dora", "llama_rslora", "llama_dora"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
