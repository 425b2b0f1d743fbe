// Permuted weights compute the same function: without rounding, every tensor comes back.
#include "verify/device/reordering.h"

#include <gtest/gtest.h>

#include "tests/verify/honest_run.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

Request request_of(const Weights& weights) {
  return honest::request(weights, 2, std::min<std::int64_t>(6, weights.config.n_ctx));
}

// A run in float64, on-demand tensors included.
Recording recorded(const Weights& weights) {
  Request request = request_of(weights);
  for (const SiteInfo& row : all_sites())
    if (row.presence == Presence::on_demand)
      for (std::int64_t l = 0; l < (row.per_layer ? weights.config.n_layers : 1); ++l)
        request.on_demand.insert({row.site, l});
  Recording recording;
  honest::run(weights, request, recording);
  return recording;
}

class ReorderingOf : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Golden, ReorderingOf, testing::ValuesIn(golden::case_names()));

TEST_P(ReorderingOf, WeightsComputeTheSameInFloat64) {
  for (const Processing& processing : {Processing::none(), Processing{}}) {
    auto weights = honest::weights(GetParam(), DType::f64, processing);
    Request request = request_of(*weights);
    Array expected = run_in_float64(*weights, request, serial_for);
    for (std::uint64_t seed : {1, 2}) {
      Weights other = Reordering(weights->config, seed).apply(*weights);
      EXPECT_NE(other.digest(), weights->digest());
      EXPECT_LT(golden::normalized_error(run_in_float64(other, request, serial_for), expected),
                1e-12);
    }
  }
}

TEST_P(ReorderingOf, TensorsComeBackInTheModelsOrder) {
  for (const Processing& processing : {Processing::none(), Processing{}}) {
    auto weights = honest::weights(GetParam(), DType::f64, processing);
    Recording clean = recorded(*weights);
    Reordering order(weights->config, 7), another(weights->config, 8);
    Recording permuted = recorded(order.apply(*weights));
    ASSERT_EQ(permuted.tensors().size(), clean.tensors().size());
    double worst_of_another = 0;
    for (std::size_t i = 0; i < clean.tensors().size(); ++i) {
      const auto& [id, value] = clean.tensors()[i];
      const Array& found = permuted.tensors()[i].second;
      EXPECT_LT(golden::normalized_error(order.undo(id, found), value), 1e-12) << to_string(id);
      worst_of_another =
          std::max(worst_of_another, golden::normalized_error(another.undo(id, found), value));
      if (id.site == Site::embed) {
        EXPECT_EQ(order.undo(id, found).digest(), value.digest());
      }
    }
    EXPECT_GT(worst_of_another, 1e-2) << "tensors undone by another order are not the model's";
  }
}

// Of every kind of family and every head.
class ReorderingOfKinds : public testing::TestWithParam<std::filesystem::path> {};

TEST_P(ReorderingOfKinds, WeightsComputeTheSameInFloat64) {
  Weights raw = load_weights(GetParam(), DType::f64);
  for (const Weights& weights : {raw, process(raw, {})}) {
    Request request = request_of(weights);
    Array expected = run_in_float64(weights, request, serial_for);
    Reordering order(weights.config, 3);
    Array found = run_in_float64(order.apply(weights), request, serial_for);
    EXPECT_LT(golden::normalized_error(order.undo(request.output(weights.config), found), expected),
              1e-11);
  }
}

std::vector<std::filesystem::path> checkpoints_of_kinds() {
  std::vector<std::filesystem::path> folders;
  for (const auto& name : golden::family_names()) folders.push_back(golden::family_folder(name));
  for (const auto& name : golden::encoder_names()) folders.push_back(golden::encoder_folder(name));
  return folders;
}
INSTANTIATE_TEST_SUITE_P(Golden, ReorderingOfKinds, testing::ValuesIn(checkpoints_of_kinds()),
                         [](const auto& info) { return info.param.filename().string(); });

TEST(Reordering, RefusesWeightsOfOtherDimensions) {
  auto weights = honest::weights("flags", DType::f32);
  Config wider = weights->config;
  wider.d_model += 1;
  EXPECT_THROW(Reordering(wider, 0).apply(*weights), std::invalid_argument);
}

TEST(ReorderingOfExperts, WeightsComputeTheSameAndTensorsComeBack) {
  Weights weights = load_weights(golden::family_folder("mixtral_window"), DType::f64);
  Reordering order(weights.config, 3);
  Weights other = order.apply(weights);
  EXPECT_NE(other.layers[0].W_in.digest(), weights.layers[0].W_in.digest());
  Recording clean = recorded(weights), permuted = recorded(other);
  ASSERT_EQ(permuted.tensors().size(), clean.tensors().size());
  for (std::size_t i = 0; i < clean.tensors().size(); ++i) {
    const auto& [id, value] = clean.tensors()[i];
    EXPECT_LT(golden::normalized_error(order.undo(id, permuted.tensors()[i].second), value), 1e-12)
        << to_string(id);
  }
}

}  // namespace
}  // namespace lenscpp
