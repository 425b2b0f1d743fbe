// Experts on a device: weights that are not those of the checkpoint, ties, and how many count.
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/remainder.h>
#include <gtest/gtest.h>

#include "hooks/transformer/torch_array.h"
#include "hooks/transformer/transformer.h"
#include "tests/golden_cases.h"
#include "verify/verifier.h"

namespace lenscpp {
namespace {

Weights mixtral() { return load_weights(golden::family_folder("mixtral_window"), DType::f32); }

// Columns of matrices [.., experts * width], or rows of [experts * width, ..], of two experts, in
// each other's place.
Array swapped(const Array& x, int axis, std::int64_t a, std::int64_t b, std::int64_t width) {
  MutableArray result(x);
  std::int64_t cols = x.size(-1);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    std::int64_t at = axis == 0 ? i / cols : i % cols, step = axis == 0 ? cols : 1;
    std::int64_t expert = at / width;
    if (expert == a) result.set(i, x[i + (b - a) * width * step]);
    if (expert == b) result.set(i, x[i - (b - a) * width * step]);
  }
  return std::move(result).freeze();
}

// A run of `device`, checked as one of `weights`.
Verdict verdict_of(const Weights& weights, const Weights& device,
                   const Interference& interference = {}) {
  auto expected = std::make_shared<const Weights>(weights);
  Request request{.rows = Rows::from_tokens({36, 3, 11, 5, 0, 7, 20, 2, 9, 1}, 2, weights.config),
                  .plan = {},
                  .on_demand = {}};
  Verifier verifier(expected, request, {.dtype = weights.dtype});
  Transformer(std::make_shared<const Weights>(device), at::kCPU)
      .run(request, &verifier, interference);
  try {
    return std::move(verifier).finish({}).verdict();
  } catch (const VerificationFailed& e) {
    return e.verdict();
  }
}
void expect_refused(const Verdict& verdict, Site site, const std::string& hint) {
  ASSERT_EQ(verdict.status, Status::invalid);
  EXPECT_EQ(to_string(verdict.first_failure()->id), hook_name(site, 1));
  EXPECT_NE(verdict.first_failure()->hint.find(hint), std::string::npos)
      << verdict.first_failure()->hint;
}

TEST(ExpertsOnADevice, SwappedWeightsOfTwoExpertsAreNamed) {
  Weights weights = mixtral();
  std::int64_t width = weights.config.d_mlp;
  struct Swap {
    Array LayerWeights::*member;
    int axis;
    std::int64_t width;
    Site site;
    const char* hint;
  };
  for (const Swap& swap :
       {Swap{&LayerWeights::W_router, 1, 1, Site::router_logits, "experts 1 and 3 swapped"},
        {&LayerWeights::W_gate, 1, width, Site::expert_gate, "experts 1 and 3 swapped"},
        {&LayerWeights::W_in, 1, width, Site::expert_pre, "experts 1 and 3 swapped"},
        {&LayerWeights::W_out, 0, width, Site::mlp_out, ""}}) {
    Weights device = weights;
    Array& array = device.layers[1].*swap.member;
    array = swapped(array, swap.axis, 1, 3, swap.width);
    expect_refused(verdict_of(weights, device), swap.site, swap.hint);
  }
}

TEST(ExpertsOnADevice, AllWeightsOfTwoExpertsSwappedComputeTheSameAndAreRefusedAllTheSame) {
  Weights weights = mixtral(), device = weights;
  std::int64_t width = weights.config.d_mlp;
  LayerWeights& layer = device.layers[1];
  layer.W_router = swapped(layer.W_router, 1, 0, 4, 1);
  layer.W_gate = swapped(layer.W_gate, 1, 0, 4, width);
  layer.W_in = swapped(layer.W_in, 1, 0, 4, width);
  layer.W_out = swapped(layer.W_out, 0, 0, 4, width);
  expect_refused(verdict_of(weights, device), Site::router_logits, "experts 0 and 4 swapped");
}

// The probabilities are right, what the device makes of them is not: its choice, its shares.
TEST(ExpertsOnADevice, AWrongChoiceAndSharesThatDoNotSumToOneAreNamed) {
  Weights weights = mixtral();
  auto at_site = [](Site site, auto change) -> Interference {
    return [=](const TensorId& id, const at::Tensor& x) {
      return id == TensorId{site, 1} ? at::Tensor(change(x)) : x;
    };
  };
  auto next = [](const at::Tensor& x) { return at::remainder(at::add(x, 1), 5); };
  Interference other = at_site(Site::expert_indices, next);
  expect_refused(verdict_of(weights, weights, other), Site::expert_indices, "");
  Interference unsummed =
      at_site(Site::expert_shares, [](const at::Tensor& x) { return at::mul(x, 0.75); });
  expect_refused(verdict_of(weights, weights, unsummed), Site::expert_shares, "scaled by 0.75");
  Interference all =
      at_site(Site::expert_shares, [](const at::Tensor& x) { return at::add(x, 1e-6); });
  expect_refused(verdict_of(weights, weights, all), Site::expert_shares, "");
}

// Equal columns of the router are equal probabilities: both sides take the expert that comes first.
TEST(ExpertsOnADevice, TiesAreBrokenAlikeOnBothSides) {
  Weights weights = mixtral();
  LayerWeights& layer = weights.layers[1];
  MutableArray router(layer.W_router);
  for (std::int64_t i = 0; i < weights.config.d_model; ++i)
    for (std::int64_t e = 1; e < 5; ++e) router.set(i * 5 + e, router.get(i * 5));
  layer.W_router = std::move(router).freeze();
  Verdict verdict = verdict_of(weights, weights);
  EXPECT_EQ(verdict.status, Status::verified) << verdict.summary();
}

TEST(ExpertsOnADevice, AnyNumberOfThemMayCount) {
  for (std::int64_t per_token : {1, 2, 3, 4, 5}) {
    Weights weights = mixtral();
    weights.config.experts->per_token = per_token;
    for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      Weights as = cast(weights, dtype);
      Verdict verdict = verdict_of(as, as);
      EXPECT_EQ(verdict.status, Status::verified) << verdict.summary();
    }
  }
}

}  // namespace
}  // namespace lenscpp
