// Processed weights are checked against the checkpoint: every wrong step is caught.
#include "verify/processing_check.h"

#include <gtest/gtest.h>

#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

class Processed : public testing::TestWithParam<std::string> {
 protected:
  Weights raw = load_weights(golden::folder(GetParam()), DType::f32);
};

TEST_P(Processed, ComputesWhatTheCheckpointComputes) {
  for (DType dtype : {DType::f32, DType::f64}) {
    Weights weights = load_weights(golden::folder(GetParam()), dtype);
    EXPECT_NO_THROW(check_processing(weights, process(weights, {}), serial_for));
    EXPECT_NO_THROW(
        check_processing(weights, process(weights, {.center_unembed = false}), serial_for));
    EXPECT_NO_THROW(check_processing(weights, process(weights, {.fold_ln = false}), serial_for));
  }
}

// One array of the processed model at a time, moved by a hundredth of its size.
TEST_P(Processed, IsRefusedWhenAnyArrayIsWrong) {
  Weights processed = process(raw, {});
  std::size_t last = processed.layers.size() - 1;
  std::vector<std::pair<std::string, Array*>> arrays{{"W_E", &processed.W_E},
                                                     {"W_pos", &processed.W_pos},
                                                     {"W_U", &processed.W_U},
                                                     {"b_U", &processed.b_U}};
  LayerWeights& layer = processed.layers[last];
  for (auto [name, array] : {std::pair{"W_QKV", &layer.W_QKV},
                             {"W_O", &layer.W_O},
                             {"b_O", &layer.b_O},
                             {"W_in", &layer.W_in},
                             {"b_in", &layer.b_in},
                             {"W_out", &layer.W_out},
                             {"b_out", &layer.b_out}})
    arrays.emplace_back(name, array);
  for (auto& [name, array] : arrays) {
    Array before = *array;
    MutableArray changed(before);
    for (std::int64_t i = 0; i < changed.numel(); ++i)
      changed.set(i, changed.get(i) * (i % 2 == 0 ? 1.02 : 0.98));
    *array = std::move(changed).freeze();
    EXPECT_THROW(check_processing(raw, processed, serial_for), std::runtime_error) << name;
    *array = before;
  }
  EXPECT_NO_THROW(check_processing(raw, processed, serial_for));
}

// Rows that the probe's few tokens and positions do not reach are compared all the same.
TEST_P(Processed, IsRefusedWhenOneRowOfATableIsWrong) {
  Weights processed = process(raw, {});
  for (Array* table : {&processed.W_E, &processed.W_pos}) {
    Array before = *table;
    MutableArray changed(before);
    std::int64_t index = before.numel() - before.size(1) - 1;  // in the last row but one
    changed.set(index, changed.get(index) + 0.01);
    *table = std::move(changed).freeze();
    EXPECT_THROW(check_processing(raw, processed, serial_for), std::runtime_error);
    *table = before;
  }
}

TEST(ProcessedExperts, AreRefusedWhenAnyArrayIsWrong) {
  Weights raw = load_weights(golden::family_folder("mixtral_window"), DType::f32);
  Weights processed = process(raw, {});
  EXPECT_NO_THROW(check_processing(raw, processed, serial_for));
  LayerWeights &layer = processed.layers[1], &before = raw.layers[1];
  for (auto member : {&LayerWeights::W_router, &LayerWeights::W_gate, &LayerWeights::W_in}) {
    Array folded = layer.*member;
    layer.*member = before.*member;  // the norm was not folded into it
    EXPECT_THROW(check_processing(raw, processed, serial_for), std::runtime_error);
    layer.*member = folded;
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Processed,
                         testing::Values("three_layers", "odd_heads", "untied", "square"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
