// The device pass against what transformers and transformer-lens compute from the same checkpoints.
#include "hooks/transformer/transformer.h"

#include <gtest/gtest.h>

#include "hooks/transformer/torch_array.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

Recorder record(const std::shared_ptr<const Weights>& weights, const Array& tokens) {
  Recorder recorder;
  Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), weights->config)};
  Transformer(weights, at::kCPU).run(request, &recorder);
  return recorder;
}

std::shared_ptr<const Weights> load(const std::string& name, DType dtype,
                                    const Processing& processing) {
  return std::make_shared<const Weights>(
      process(load_weights(golden::folder(name), dtype), processing));
}

class GoldenCase : public testing::TestWithParam<std::string> {};

// STYLE: normalized error below 1e-5 in float32 and 1e-12 in float64.
TEST_P(GoldenCase, EqualsTransformersEagerAttention) {
  SafetensorsFile hf = SafetensorsFile::open(golden::folder(GetParam()) / "hf.safetensors");
  for (auto [dtype, limit] : {std::pair{DType::f32, 1e-5}, {DType::f64, 1e-12}}) {
    auto weights = load(GetParam(), dtype, Processing::none());
    for (std::string i : {"0", "1"}) {
      Recorder run = record(weights, hf.tensor("tokens." + i));
      EXPECT_LT(
          golden::normalized_error(run.tensors().at({Site::unembed_out}), hf.tensor("logits." + i)),
          limit);
      for (std::int64_t l = 0; l < weights->config.n_layers; ++l) {
        EXPECT_LT(golden::normalized_error(run.tensors().at({Site::resid_pre, l}),
                                           hf.tensor("hidden." + i + "." + std::to_string(l))),
                  limit)
            << l;
        EXPECT_LT(golden::normalized_error(run.tensors().at({Site::pattern, l}),
                                           hf.tensor("attention." + i + "." + std::to_string(l))),
                  limit)
            << l;
      }
      std::int64_t last = weights->config.n_layers - 1;
      EXPECT_LT(golden::normalized_error(run.tensors().at({Site::resid_post, last}),
                                         hf.tensor("resid_final." + i)),
                limit);
      EXPECT_LT(golden::normalized_error(run.tensors().at({Site::unembed_in}),
                                         hf.tensor("hidden." + i + "." + std::to_string(last + 1))),
                limit);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Transformer, GoldenCase, testing::ValuesIn(golden::case_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
