// Callbacks in runs of the device pass: what they change, what is recorded, what is refused.
#include <ATen/ops/add.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

using Function = std::function<std::optional<Array>(const TensorId&, const Array&)>;

const HookedTransformer& model() {
  static HookedTransformer loaded = HookedTransformer::from_pretrained(
      golden::folder("three_layers"), {.processing = Processing::none()});
  return loaded;
}

Tokens tokens() { return model().tokens_of({3, 10, 17, 24, 31, 38, 45, 52, 59, 66, 73, 80}, 2); }

Callback hook(Site site, std::int64_t layer, Function call, std::string name = "hook") {
  return {.site = site, .layer = layer, .name = std::move(name), .call = std::move(call)};
}

Array zeroed_head(const Array& z, std::int64_t head) {
  MutableArray changed(z);
  for (std::int64_t i = 0; i < z.numel(); ++i)
    if (i / z.size(3) % z.size(2) == head) changed.set(i, 0);
  return std::move(changed).freeze();
}

std::string refusal(const RunOptions& options) {
  try {
    model().run_with_cache(tokens(), options);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no exception";
}

TEST(CallbacksOfARun, ThatOnlyLookChangeNoBit) {
  VerifiedCache clean = model().run_with_cache(tokens());
  RunOptions options;
  std::size_t calls = 0;
  for (const Activations::Entry& entry : clean.activations().entries())
    options.callbacks.push_back(
        hook(entry.id.site, entry.id.layer,
             [&](const TensorId&, const Array& value) -> std::optional<Array> {
               calls += 1;
               if (calls % 2 == 0) return std::nullopt;
               return std::move(MutableArray(value)).freeze();
             }));
  VerifiedCache looked = model().run_with_cache(tokens(), options);
  EXPECT_EQ(calls, clean.activations().entries().size());
  for (const Activations::Entry& entry : clean.activations().entries())
    EXPECT_EQ(looked[entry.name].digest(), entry.digest) << entry.name;
  for (const HookCall& call : looked.record().hooks) {
    EXPECT_FALSE(call.changed);
    EXPECT_EQ(call.before, call.after);
  }
}

TEST(CallbacksOfARun, ZeroingAHeadEqualsTheEditThatDoes) {
  RunOptions hooked, edited;
  hooked.callbacks = {hook(
      Site::z, 1,
      [](const TensorId&, const Array& z) -> std::optional<Array> { return zeroed_head(z, 2); },
      "zero_head")};
  edited.plan = Plan({{.kind = EditKind::zero, .site = Site::z, .layer = 1, .where = {.head = 2}}});
  VerifiedCache a = model().run_with_cache(tokens(), hooked),
                b = model().run_with_cache(tokens(), edited);
  for (const Activations::Entry& entry : a.activations().entries())
    EXPECT_EQ(entry.digest, b[entry.name].digest()) << entry.name;
  ASSERT_EQ(a.record().hooks.size(), 1u);
  EXPECT_EQ(a.record().hooks[0].name, "blocks.1.attn.hook_z");
  EXPECT_EQ(a.record().hooks[0].function, "zero_head");
  EXPECT_TRUE(a.record().hooks[0].changed);
  EXPECT_EQ(a.record().hooks[0].after, a["blocks.1.attn.hook_z"].digest());
  EXPECT_EQ(a.record().hooks[0].before,
            model().run_with_cache(tokens())["blocks.1.attn.hook_z"].digest());
}

TEST(CallbacksOfARun, FollowThePlansEditsInTheirOrder) {
  RunOptions options;
  options.plan = Plan({{.kind = EditKind::scale, .site = Site::embed, .factor = 2}});
  std::vector<double> seen;
  for (double step : {1.0, 10.0})
    options.callbacks.push_back(
        hook(Site::embed, 0, [&seen, step](const TensorId&, const Array& value) {
          seen.push_back(value[0]);
          MutableArray changed(value);
          changed.set(0, value[0] + step);
          return std::move(changed).freeze();
        }));
  double clean = model().run_with_cache(tokens())["hook_embed"][0];
  VerifiedCache cache = model().run_with_cache(tokens(), options);
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0], 2 * clean);
  EXPECT_FLOAT_EQ(static_cast<float>(seen[1]), static_cast<float>(2 * clean + 1));
  EXPECT_FLOAT_EQ(static_cast<float>(cache["hook_embed"][0]), static_cast<float>(2 * clean + 11));
}

TEST(CallbacksOfARun, AWrongUploadOrAnyOtherFaultIsNamedAtItsStage) {
  RunOptions options;
  options.callbacks = {hook(
      Site::z, 1,
      [](const TensorId&, const Array& z) -> std::optional<Array> { return zeroed_head(z, 2); },
      "zero_head")};
  auto named = [&](const TensorId& wrong) {
    options.interference = [&](const TensorId& id, const at::Tensor& x) {
      return id == wrong ? at::add(x, 0.01) : x;
    };
    return refusal(options);
  };
  EXPECT_NE(named({Site::z, 1, 0}).find("INVALID: blocks.1.attn.hook_z (mix)"), std::string::npos);
  EXPECT_NE(
      named({Site::z, 1, 1}).find("INVALID: blocks.1.attn.hook_z (hook 1: zero_head) (callback)"),
      std::string::npos);
  EXPECT_NE(named({Site::attn_out, 1}).find("INVALID: blocks.1.hook_attn_out"), std::string::npos);
  options.verify = VerifyMode::off;
  EXPECT_EQ(model().run_unverified(tokens(), options).record().hooks.size(), 1u);
}

TEST(CallbacksOfARun, OnDemandSitesAreComputedForThemAndReadOn) {
  VerifiedCache clean = model().run_with_cache(tokens());
  for (Site site : {Site::result, Site::attn_in, Site::q_input, Site::k_input, Site::v_input,
                    Site::mlp_in, Site::ln1_scale, Site::ln_final_scale}) {
    for (bool changes : {false, true}) {
      RunOptions options;
      std::int64_t layer = info(site).per_layer ? 1 : 0;
      options.callbacks = {
          hook(site, layer, [&](const TensorId&, const Array& value) -> std::optional<Array> {
            if (!changes) return std::nullopt;
            MutableArray twice(value);
            for (std::int64_t i = 0; i < value.numel(); i += 3) twice.set(i, 2 * value[i]);
            return std::move(twice).freeze();
          })};
      VerifiedCache cache = model().run_with_cache(tokens(), options);
      double error = golden::normalized_error(cache.output(), clean.output());
      if (changes)
        EXPECT_GT(error, 1e-4) << hook_name(site, layer);
      else
        EXPECT_LT(error, 1e-5) << hook_name(site, layer);
    }
  }
}

TEST(CallbacksOfARun, InEveryDtypeStayVerified) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    HookedTransformer typed = HookedTransformer::from_pretrained(
        golden::folder("three_layers"), {.processing = Processing::none(), .dtype = dtype});
    for (Site site : {Site::z, Site::pattern, Site::attn_scores, Site::ln2_scale}) {
      RunOptions options{
          .callbacks = {hook(site, 1,
                             [](const TensorId&, const Array& value) -> std::optional<Array> {
                               MutableArray half(value);
                               for (std::int64_t i = 0; i < value.numel(); ++i)
                                 half.set(i, 0.5 * value[i]);
                               return std::move(half).freeze();
                             })},
          .drift = true};
      EXPECT_NO_THROW(typed.run_with_cache(tokens(), options))
          << name_of(dtype) << hook_name(site, 1);
    }
  }
}

TEST(CallbacksOfARun, ReturnsThatDoNotFitAreRefused) {
  RunOptions options;
  options.callbacks = {
      hook(Site::z, 1, [](const TensorId&, const Array& z) { return z.to(DType::f64); })};
  EXPECT_NE(refusal(options).find("[hook] hook at blocks.1.attn.hook_z returned float64"),
            std::string::npos);
  options.verify = VerifyMode::off;
  EXPECT_THROW(model().run_unverified(tokens(), options), std::invalid_argument);
  EXPECT_THROW(model().forward(tokens(), options), std::invalid_argument);
}

TEST(CallbacksOfARun, ThatWouldNeverBeCalledAreRefusedUpFront) {
  bool called = false;
  RunOptions options{.callbacks = {hook(Site::resid_pre, 0,
                                        [&](auto...) {
                                          called = true;
                                          return std::nullopt;
                                        }),
                                   hook(Site::z, 2, [](auto...) { return std::nullopt; })},
                     .stop_at_layer = 2};
  EXPECT_NE(refusal(options).find("blocks.2.attn.hook_z, which this run does not compute"),
            std::string::npos);
  EXPECT_FALSE(called);
}

TEST(CallbacksOfARun, WhatTheyThrowComesThroughAndTheNextRunIsClean) {
  struct Own {};
  RunOptions options;
  options.callbacks = {hook(Site::z, 1, [](auto...) -> std::optional<Array> { throw Own(); })};
  std::string clean = model().forward(tokens()).digest();
  EXPECT_THROW(model().run_with_cache(tokens(), options), Own);
  EXPECT_EQ(model().forward(tokens()).digest(), clean);
  EXPECT_TRUE(c10::GradMode::is_enabled());
}

TEST(CallbacksOfARun, SeeTheCallersTorchAndMayRunTheModel) {
  bool grad = false, inference = true;
  std::string inner, clean = model().forward(tokens()).digest();
  RunOptions options;
  options.callbacks = {hook(Site::z, 1, [&](auto...) {
    grad = c10::GradMode::is_enabled();
    inference = c10::InferenceMode::is_enabled();
    inner = model().forward(tokens()).digest();
    return std::nullopt;
  })};
  EXPECT_EQ(model().forward(tokens(), options).digest(), clean);
  EXPECT_EQ(inner, clean);
  EXPECT_TRUE(grad);
  EXPECT_FALSE(inference);
}

// The memory that a callback is handed is the device's own on a CPU.
TEST(CallbacksOfARun, WritingIntoWhatWasHandedOverIsNoticed) {
  RunOptions options;
  options.callbacks = {hook(Site::z, 1, [](const TensorId&, const Array& z) {
    const_cast<float*>(z.as<float>().data())[0] += 1;
    return std::nullopt;
  })};
  EXPECT_NE(refusal(options).find("INVALID: blocks.1.attn.hook_z"), std::string::npos)
      << refusal(options);
}

}  // namespace
}  // namespace lenscpp
