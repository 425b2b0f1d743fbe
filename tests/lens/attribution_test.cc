// Decompositions and attributions: their identities on golden checkpoints, and that each check
// fails. What transformer-lens computes is compared in tests/python/test_attribution.py.
#include "lens/attribution.h"

#include <gtest/gtest.h>

#include "lens/decomposition.h"
#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

constexpr AttributionUnit kUnits[] = {AttributionUnit::component, AttributionUnit::head,
                                      AttributionUnit::layer};

struct AttributionRun {
  HookedTransformer model;
  Tokens tokens;
  VerifiedCache cache;
};
AttributionRun run(const std::string& name, bool processed, DType dtype,
                   const RunOptions& options = {}) {
  auto model = HookedTransformer::from_pretrained(
      golden::folder(name),
      {.processing = processed ? Processing{} : Processing::none(), .dtype = dtype});
  Array ids = SafetensorsFile::open(golden::folder(name) / "hf.safetensors").tensor("tokens.0");
  Tokens tokens = model.tokens_of(golden::ids(ids), ids.size(0));
  VerifiedCache cache = model.run_with_cache(tokens, options);
  return {std::move(model), tokens, std::move(cache)};
}

Array token(std::int64_t id) { return Array::of(std::span<const std::int64_t>(&id, 1), {}); }

// Components summed in float64: [batch, pos, d_model].
Array summed(const Array& values) {
  Shape shape(values.shape().begin() + 1, values.shape().end());
  MutableArray sum(shape, DType::f64);
  for (std::int64_t i = 0; i < values.numel(); ++i)
    sum.set(i % sum.numel(), sum.get(i % sum.numel()) + values[i]);
  return std::move(sum).freeze();
}

void expect_sum(const Stack& stack, const Array& expected, double limit) {
  ASSERT_EQ(static_cast<std::int64_t>(stack.labels.size()), stack.values.size(0));
  Array sum = summed(stack.values);
  ASSERT_EQ(sum.shape(), expected.shape());
  EXPECT_LE(golden::normalized_error(sum, expected), limit);
}

class Attribution : public testing::TestWithParam<std::tuple<std::string, bool, DType>> {
 protected:
  DType dtype = std::get<2>(GetParam());
  double limit = dtype == DType::f64 ? 1e-12 : 1e-5;
  AttributionRun r = run(std::get<0>(GetParam()), std::get<1>(GetParam()), dtype);
};

TEST_P(Attribution, PartsSumToTheResidualTheyDecompose) {
  std::int64_t n = r.model.config().n_layers;
  const Array& final = r.cache[hook_name(Site::resid_post, n - 1)];
  expect_sum(decompose_resid(r.cache), final, limit);
  expect_sum(decompose_resid(r.cache, {.layer = n - 1}), r.cache[hook_name(Site::resid_pre, n - 1)],
             limit);
  expect_sum(decompose_resid(r.cache, {.layer = n - 1, .mlp_input = true}),
             r.cache[hook_name(Site::resid_mid, n - 1)], limit);
  expect_sum(stack_head_results(r.cache, {.incl_remainder = true}), final, limit);
  expect_sum(stack_neuron_results(r.cache, {.incl_remainder = true}), final, limit);
  expect_sum(get_full_resid_decomposition(r.cache), final, limit);
  expect_sum(get_full_resid_decomposition(r.cache, {.expand_neurons = false}), final, limit);
  expect_sum(
      get_full_resid_decomposition(r.cache, {.layer = n - 1, .mlp_input = true, .apply_ln = false}),
      r.cache[hook_name(Site::resid_mid, n - 1)], limit);
}

TEST_P(Attribution, RemaindersAreTheResidualOfTheirLayer) {
  // Before layer 0 there are no heads: the remainder is the whole stream.
  Stack none = stack_head_results(r.cache, {.layer = 0, .incl_remainder = true});
  EXPECT_EQ(none.labels, std::vector<std::string>{"remainder"});
  expect_sum(none, r.cache["blocks.0.hook_resid_pre"], 0);
}

TEST_P(Attribution, FrozenNormOfThePartsSumsToTheRunsOwn) {
  Stack parts = decompose_resid(r.cache, {.apply_ln = true});
  expect_sum(parts, r.cache["ln_final.hook_normalized"], limit);
  expect_sum({parts.labels, apply_ln_to_stack(r.cache, decompose_resid(r.cache).values)},
             summed(parts.values), limit);
  Stack mlp_input = decompose_resid(r.cache, {.layer = 0, .mlp_input = true, .apply_ln = true});
  EXPECT_LE(
      golden::normalized_error(summed(mlp_input.values), r.cache["blocks.0.ln2.hook_normalized"]),
      limit);
}

TEST_P(Attribution, SumsToTheLogitDifferenceOfTheRun) {
  const Array& logits = r.cache["unembed.hook_out"];
  std::int64_t vocab = logits.size(-1);
  double scale = 0;
  for (std::int64_t i = 0; i < logits.numel(); ++i) scale = std::max(scale, std::abs(logits[i]));
  for (AttributionUnit unit : kUnits)
    for (bool against : {true, false}) {
      auto wrong = against ? std::optional(token(2)) : std::nullopt;
      LogitAttribution found = direct_logit_attribution(r.cache, token(1), wrong, unit, {});
      Array sum = summed(found.values);
      ASSERT_EQ(sum.numel(), logits.numel() / vocab);
      for (std::int64_t i = 0; i < sum.numel(); ++i) {
        double expected = logits[i * vocab + 1] - (against ? logits[i * vocab + 2] : 0);
        EXPECT_LE(std::abs(sum[i] - expected), limit * scale) << name_of(unit) << " row " << i;
        EXPECT_LE(std::abs(found.logit_diff[i] - expected), limit * scale);
        EXPECT_LE(std::abs(found.total[i] - expected), limit * scale);
        EXPECT_GT(found.bound[i], 0);
        // Wide enough for what rounding does, narrow enough to see a part in a thousand.
        EXPECT_LT(found.bound[i], (dtype == DType::f64 ? 1e-11 : 1e-3) * scale);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Golden, Attribution,
                         testing::Combine(testing::Values("three_layers", "untied", "odd_heads",
                                                          "inverse_layer_scale"),
                                          testing::Bool(), testing::Values(DType::f32, DType::f64)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "_processed_" : "_raw_") +
                                  std::string(name_of(std::get<2>(info.param)));
                         });

// The message of what direct_logit_attribution throws, or "" where it does not.
std::string refusal(const VerifiedCache& cache, AttributionUnit unit) {
  try {
    direct_logit_attribution(cache, token(1), token(2), unit);
    return "";
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
}

TEST(AttributionTest, HoldsInNarrowRuns) {
  for (DType dtype : {DType::bf16, DType::f16})
    for (bool processed : {true, false})
      for (const char* name : {"three_layers", "untied", "square"})
        for (AttributionUnit unit : kUnits)
          EXPECT_EQ(refusal(run(name, processed, dtype).cache, unit), "") << name;
}

TEST(AttributionTest, RefusesARunThatWasEditedBetweenItsParts) {
  for (Site site : {Site::resid_pre, Site::resid_mid, Site::resid_post}) {
    RunOptions options{
        .plan = Plan({{.kind = EditKind::scale, .site = site, .layer = 1, .factor = 1.01}})};
    AttributionRun r = run("three_layers", true, DType::f32, options);
    for (AttributionUnit unit : kUnits) {
      std::string why = refusal(r.cache, unit);
      EXPECT_NE(why.find("the parts sum to"), std::string::npos) << why;
      EXPECT_NE(why.find("edited at " + hook_name(site, 1)), std::string::npos) << why;
    }
  }
}

TEST(AttributionTest, TakesAnEditedPartAsAPart) {
  for (Site site : {Site::attn_out, Site::mlp_out}) {
    RunOptions options{.plan = Plan({{.kind = EditKind::zero, .site = site, .layer = 1}})};
    AttributionRun r = run("three_layers", false, DType::f32, options);
    EXPECT_EQ(refusal(r.cache, AttributionUnit::component), "");
    EXPECT_EQ(refusal(r.cache, AttributionUnit::head).empty(), site == Site::mlp_out);
  }
}

TEST(AttributionTest, ReadsHeadResultsThatWereEdited) {
  RunOptions options{
      .plan =
          Plan({{.kind = EditKind::zero, .site = Site::result, .layer = 1, .where = {.head = 0}}})};
  options.filter = [](const std::string& name) { return name != "blocks.1.attn.hook_result"; };
  AttributionRun dropped = run("three_layers", true, DType::f32, options);
  EXPECT_NE(refusal(dropped.cache, AttributionUnit::head).find("needs blocks.1.attn.hook_result"),
            std::string::npos);
  options.filter = {};
  options.names = hook_names(dropped.model.config());
  options.names->push_back("blocks.1.attn.hook_result");
  AttributionRun kept = run("three_layers", true, DType::f32, options);
  EXPECT_EQ(refusal(kept.cache, AttributionUnit::head), "");
  Stack heads = stack_head_results(kept.cache);
  std::int64_t per_head = heads.values.numel() / heads.values.size(0),
               n_heads = kept.model.config().n_heads;
  for (std::int64_t i = 0; i < per_head; ++i)
    ASSERT_EQ(heads.values[n_heads * per_head + i], 0) << "L1H0 was set to zero";
}

TEST(AttributionTest, NamesWhatWasNotKept) {
  RunOptions options{.names = std::vector<std::string>{"hook_embed"}};
  AttributionRun r = run("three_layers", true, DType::f32, options);
  try {
    decompose_resid(r.cache);
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("needs hook_pos_embed"), std::string::npos) << e.what();
  }
}

TEST(AttributionTest, RefusesAPartThatWasTamperedWith) {
  AttributionRun r = run("three_layers", true, DType::f32);
  for (const char* name : {"blocks.1.hook_attn_out", "blocks.2.hook_mlp_out", "hook_embed",
                           "ln_final.hook_scale", "unembed.hook_out"}) {
    auto* byte = const_cast<std::byte*>(r.cache[name].bytes());
    byte[1] ^= std::byte{1};
    for (AttributionUnit unit : {AttributionUnit::component, AttributionUnit::layer})
      EXPECT_THROW(direct_logit_attribution(r.cache, token(1), token(2), unit), NotVerified)
          << name;
    byte[1] ^= std::byte{1};
    EXPECT_EQ(refusal(r.cache, AttributionUnit::component), "");
  }
}

TEST(AttributionTest, SaysThatTheUnembeddingHasNoMlp) {
  AttributionRun r = run("flags", true, DType::f32);
  try {
    decompose_resid(r.cache, {.mlp_input = true});
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("has no MLP"), std::string::npos) << e.what();
  }
}

TEST(AttributionTest, CountsTheFinalNormsWeightWhereItIsNotFolded) {
  // A difference of two logits is the same, whichever matrix holds the weight.
  AttributionRun raw = run("untied", false, DType::f64), folded = run("untied", true, DType::f64);
  Array found[2];
  for (int i = 0; i < 2; ++i) {
    const VerifiedCache& cache = i == 0 ? raw.cache : folded.cache;
    Array stack = decompose_resid(cache, {.incl_embeds = false}).values;
    found[i] = summed(logit_attrs(cache, stack, token(1), token(2)));
    EXPECT_EQ(found[i].shape(), (Shape{cache.record().batch, cache.record().pos}));
  }
  // What writing weights lose when centred, every position's norm takes out anyway.
  EXPECT_LE(golden::normalized_error(found[0], found[1]), 1e-10);
}

TEST(AttributionTest, RefusesWhatIsNotThere) {
  AttributionRun r = run("flags", true, DType::f32);
  std::int64_t n = r.model.config().n_layers;
  EXPECT_THROW(decompose_resid(r.cache, {.layer = n + 1}), std::out_of_range);
  EXPECT_THROW(decompose_resid(r.cache, {.pos = {.indices = {{999}}}}), std::out_of_range);
  EXPECT_THROW(decompose_resid(r.cache, {.pos = {.indices = {std::vector<std::int64_t>{}}}}),
               std::invalid_argument);
  EXPECT_THROW(decompose_resid(r.cache, {.pos = {.indices = {{0, 1}}, .collapses = true}}),
               std::invalid_argument);
  EXPECT_THROW(get_neuron_results(r.cache, {.layer = n}), std::out_of_range);
  EXPECT_THROW(direct_logit_attribution(r.cache, token(-1)), std::out_of_range);
  const RunRecord& record = r.cache.record();
  std::int64_t d_model = r.model.config().d_model;
  for (const Shape& shape : {Shape{2, 3}, Shape{2, record.batch, record.pos - 1, d_model},
                             Shape{2, record.pos, record.batch, d_model}})
    EXPECT_THROW(apply_ln_to_stack(r.cache, MutableArray(shape, DType::f32).freeze()),
                 std::invalid_argument)
        << to_string(shape);
  EXPECT_THROW(logit_attrs(r.cache, decompose_resid(r.cache).values,
                           MutableArray({7, 7}, DType::i64).freeze()),
               std::invalid_argument);
  EXPECT_THROW(attribution_unit_from_name("neuron"), std::invalid_argument);
}

// At positions that are asked for by name, also of those that were kept.
TEST(Attribution, PaddingIsRefused) {
  HookedTransformer model = HookedTransformer::from_pretrained(golden::folder("three_layers"));
  Tokens tokens{.batch = 2, .pos = 4, .ids = {1, 2, 3, 4, 5, 6, 7, 8}, .spans = {{0, 4}, {1, 3}}};
  VerifiedCache whole = model.run_with_cache(tokens),
                kept = model.run_with_cache(tokens, {.pos_slice = std::vector<std::int64_t>{2, 3}});
  auto at = [](const VerifiedCache& cache, std::int64_t pos) {
    return decompose_resid(cache, {.pos = {.indices = std::vector<std::int64_t>{pos}}});
  };
  EXPECT_NO_THROW(at(whole, 1));
  EXPECT_THROW(at(whole, 0), std::invalid_argument);
  EXPECT_THROW(at(whole, -1), std::invalid_argument);
  EXPECT_NO_THROW(at(kept, 0));
  EXPECT_THROW(at(kept, 1), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
