// Runs that start from the residual before a layer: the same numbers as the whole run, and every
// refusal.
#include <ATen/ops/mul.h>
#include <gtest/gtest.h>

#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

class RunStart : public testing::TestWithParam<DType> {
 protected:
  HookedTransformer model =
      HookedTransformer::from_pretrained(golden::folder("three_layers"), {.dtype = GetParam()});
  Tokens tokens = model.tokens_of({1, 5, 200, 7, 3, 256}, 2);
};

TEST_P(RunStart, GivesWhatTheWholeRunGives) {
  VerifiedCache whole = model.run_with_cache(tokens);
  for (std::int64_t layer : {0, 1, 2, -1}) {
    std::int64_t first = layer < 0 ? layer + 3 : layer;
    Array residual = whole[hook_name(Site::resid_pre, first)];
    VerifiedCache part = model.run_with_cache({}, {.start = Start{layer, residual}, .drift = true});
    EXPECT_EQ(part.output().digest(), whole.output().digest()) << layer;
    EXPECT_EQ(part.activations().entries().front().name, hook_name(Site::resid_pre, first));
    EXPECT_EQ(part.record().first_layer, first);
    EXPECT_TRUE(part.record().tokens.empty());
    EXPECT_EQ(part.verdict().status, Status::verified);
    for (const auto& entry : part.activations().entries())
      EXPECT_EQ(entry.digest, whole.activations().at(entry.name).digest) << entry.name;
  }
}

TEST_P(RunStart, StopsWhereAsked) {
  VerifiedCache whole = model.run_with_cache(tokens);
  Array residual = whole["blocks.1.hook_resid_pre"];
  Array stopped = model.forward({}, {.start = Start{1, residual}, .stop_at_layer = 2});
  EXPECT_EQ(stopped.digest(), whole["blocks.2.hook_resid_pre"].digest());
  EXPECT_THROW(model.forward({}, {.start = Start{2, residual}, .stop_at_layer = 1}),
               std::out_of_range);
}

// What is uploaded to start from is a link of its own.
TEST_P(RunStart, AFaultyStartIsRefused) {
  Array residual = model.run_with_cache(tokens)["blocks.1.hook_resid_pre"];
  Interference off = [](const TensorId& id, const at::Tensor& x) {
    return id.site == Site::resid_pre && id.layer == 1 ? at::mul(x, 1.5) : x;
  };
  try {
    model.forward({}, {.start = Start{1, residual}, .interference = off});
    FAIL() << "not refused";
  } catch (const VerificationFailed& error) {
    EXPECT_EQ(to_string(error.verdict().first_failure()->id), "blocks.1.hook_resid_pre");
  }
}

TEST_P(RunStart, Refuses) {
  DType dtype = GetParam();
  auto run = [&](std::int64_t layer, Shape shape, DType stored, const Tokens& with = {}) {
    model.forward(with, {.start = Start{layer, MutableArray(std::move(shape), stored).freeze()}});
  };
  std::int64_t d = model.config().d_model;
  EXPECT_THROW(run(1, {1, 3, d + 1}, dtype), std::invalid_argument);
  EXPECT_THROW(run(1, {3, d}, dtype), std::invalid_argument);
  EXPECT_THROW(run(1, {1, 0, d}, dtype), std::invalid_argument);
  EXPECT_THROW(run(1, {1, 17, d}, dtype), std::out_of_range) << "n_ctx is 16";
  EXPECT_THROW(run(1, {1, 3, d}, dtype == DType::f64 ? DType::f32 : DType::f64),
               std::invalid_argument);
  EXPECT_THROW(run(3, {1, 3, d}, dtype), std::out_of_range);
  EXPECT_THROW(run(-4, {1, 3, d}, dtype), std::out_of_range);
  EXPECT_THROW(run(1, {2, 3, d}, dtype, tokens), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RunStart, testing::Values(DType::f32, DType::f64, DType::bf16),
                         [](const auto& i) { return std::string(name_of(i.param)); });

}  // namespace
}  // namespace lenscpp
