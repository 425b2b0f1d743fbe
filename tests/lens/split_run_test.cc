// Runs in parts: the whole run within the bounds, verified as one, and refused where parts would
// compute something else.
#include "lens/split_run.h"

#include <ATen/ops/mul.h>
#include <gtest/gtest.h>

#include "hooks/transformer/torch_array.h"
#include "lens/preflight.h"
#include "tests/golden_cases.h"
#include "verify/device/simulated.h"
#include "verify/store/run_json.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kLength = 16;

// So that logits of at most `prompts` prompts of 16 tokens fit; the tables do as well.
DeviceLimits room_for(std::int64_t prompts, const Config& c, DType dtype) {
  std::int64_t bytes = prompts * kLength * c.d_vocab * static_cast<std::int64_t>(size_of(dtype));
  return {.device = "toy",
          .limits = {{.name = "a small buffer", .measure = Measure::bytes, .most = bytes}}};
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

Array noise(Shape shape, DType dtype) {
  MutableArray values(std::move(shape), dtype);
  for (std::int64_t i = 0; i < values.numel(); ++i) values.set(i, std::sin(static_cast<double>(i)));
  return std::move(values).freeze();
}

std::vector<std::int64_t> seven_prompts() {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 7 * kLength; ++i) ids.push_back(i * 37 % 257);
  return ids;
}

class Split : public testing::TestWithParam<DType> {
 protected:
  DType dtype = GetParam();
  HookedTransformer whole =
      HookedTransformer::from_pretrained(golden::folder("three_layers"), {.dtype = dtype});
  const Config& c = whole.config();
  HookedTransformer parts{whole.shared_weights(),
                          std::nullopt,
                          {.dtype = dtype, .limits = room_for(3, whole.config(), dtype)}};
  Tokens tokens = whole.tokens_of(seven_prompts(), 7);

  // Both verified; the parts' output within what two summation orders differ by.
  void expect_same(const RunOptions& options, const Tokens& run_tokens) {
    VerifiedCache a = whole.run_with_cache(run_tokens, options),
                  b = parts.run_with_cache(run_tokens, options);
    EXPECT_TRUE(a.record().split.empty());
    EXPECT_EQ(b.record().split, (std::vector<std::int64_t>{3, 3, 1}));
    EXPECT_EQ(b.verdict().status, Status::verified);
    EXPECT_EQ(b.verdict().coverage, 1);
    EXPECT_EQ(b.verdict().n_compared(), a.verdict().n_compared());
    ASSERT_EQ(a.activations().entries().size(), b.activations().entries().size());
    double limit = dtype == DType::f32 ? 1e-5 : 0.1;
    for (const auto& entry : a.activations().entries()) {
      const Array& value = b.activations().at(entry.name).value;
      EXPECT_EQ(value.shape(), entry.value.shape()) << entry.name;
      EXPECT_LT(golden::normalized_error(value, entry.value), limit) << entry.name;
    }
    EXPECT_EQ(b.output().shape(), a.output().shape());
    EXPECT_LT(golden::normalized_error(b.output(), a.output()), limit);
  }
};

TEST_P(Split, IsTheWholeRun) { expect_same({}, tokens); }

TEST_P(Split, WithPositionsAndDriftAndASite) {
  expect_same(
      {.names = std::vector<std::string>{"blocks.1.attn.hook_z", "blocks.0.attn.hook_result"},
       .pos_slice = std::vector<std::int64_t>{1, 3},
       .drift = true},
      tokens);
}

TEST_P(Split, WithEditsOfOnePrompt) {
  Plan plan(
      {{.kind = EditKind::patch,
        .site = Site::resid_pre,
        .layer = 1,
        .where = {.batch = 4},
        .source = noise({7, kLength, c.d_model}, dtype)},
       {.kind = EditKind::zero, .site = Site::z, .layer = 0, .where = {.batch = -1, .head = 1}},
       {.kind = EditKind::scale,
        .site = Site::attn_scores,
        .layer = 2,
        .where = {.batch = 0},
        .factor = 0.5},
       {.kind = EditKind::zero,
        .site = Site::q_input,
        .layer = 1,
        .where = {.batch = 6, .head = 0}}});
  expect_same({.plan = plan}, tokens);
}

TEST_P(Split, WithSourcesForEveryPromptForOneAndForAll) {
  Plan plan({{.kind = EditKind::add,
              .site = Site::resid_post,
              .layer = 0,
              .source = noise({7, kLength, c.d_model}, dtype),
              .factor = 2},
             {.kind = EditKind::patch,
              .site = Site::mlp_out,
              .layer = 1,
              .source = noise({1, kLength, c.d_model}, dtype)},
             {.kind = EditKind::add,
              .site = Site::resid_pre,
              .layer = 2,
              .source = noise({c.d_model}, dtype)},
             {.kind = EditKind::mean,
              .site = Site::attn_out,
              .layer = 0,
              .source = noise({7, kLength, c.d_model}, dtype)}});
  expect_same({.plan = plan}, tokens);
}

TEST_P(Split, FromAResidual) {
  Array residual = whole.run_with_cache(tokens)["blocks.1.hook_resid_pre"];
  expect_same({.start = Start{1, residual}}, {});
}

TEST_P(Split, LogitsAloneAndUnverified) {
  double limit = dtype == DType::f32 ? 1e-5 : 0.1;
  Array logits = whole.forward(tokens);
  EXPECT_LT(golden::normalized_error(parts.forward(tokens), logits), limit);
  EXPECT_LT(golden::normalized_error(parts.forward(tokens, {.verify = VerifyMode::off}), logits),
            limit);
  UnverifiedCache a = whole.run_unverified(tokens), b = parts.run_unverified(tokens);
  EXPECT_EQ(b.record().split, (std::vector<std::int64_t>{3, 3, 1}));
  ASSERT_EQ(b.activations().entries().size(), a.activations().entries().size());
  for (const auto& entry : a.activations().entries())
    EXPECT_LT(golden::normalized_error(b[entry.name], entry.value), limit) << entry.name;
  EXPECT_LT(golden::normalized_error(b.activations().output().value, logits), limit);
}

TEST_P(Split, AFaultInOnePartIsSeenAndItsPromptNamed) {
  std::int64_t call = 0;
  Interference off = [&](const TensorId& id, const at::Tensor& x) {
    return id.site == Site::mlp_post && id.layer == 1 && ++call == 2 ? at::mul(x, 1.5) : x;
  };
  try {
    parts.run_with_cache(tokens, {.interference = off});
    FAIL() << "not refused";
  } catch (const VerificationFailed& e) {
    const Point* first = e.verdict().first_failure();
    EXPECT_EQ(first->name, "blocks.1.mlp.hook_post");
    std::int64_t prompt = first->worst_index / (kLength * c.d_mlp);
    EXPECT_TRUE(prompt >= 3 && prompt < 6) << prompt;
    EXPECT_EQ(e.record().split.size(), 3u);
  }
}

TEST_P(Split, IsRefusedWhereAFunctionSeesAllPrompts) {
  Callback look{
      .site = Site::z, .layer = 0, .name = "look", .call = [](const TensorId&, const Array&) {
        return std::optional<Array>();
      }};
  std::string said = refusal([&] { parts.run_with_cache(tokens, {.callbacks = {look}}); });
  for (const char* part : {"a small buffer", "cannot be split",
                           "look at blocks.0.attn.hook_z sees all prompts", "3 prompts at a time"})
    EXPECT_NE(said.find(part), said.npos) << part << "\n" << said;
  Plan mean({{.kind = EditKind::mean, .site = Site::z, .layer = 0}});
  said = refusal([&] { parts.run_with_cache(tokens, {.plan = mean}); });
  EXPECT_NE(said.find("the mean at blocks.0.attn.hook_z"), said.npos) << said;
  Tokens few = parts.tokens_of({1, 5, 200, 7}, 1);
  EXPECT_NO_THROW(parts.run_with_cache(few, {.plan = mean, .callbacks = {look}}))
      << "nothing to split";
}

TEST_P(Split, IsRefusedWhereNotEvenOnePromptFits) {
  DeviceLimits few{
      .device = "toy",
      .limits = {{.name = "few products", .measure = Measure::product_batch, .most = 2}}};
  HookedTransformer none(whole.shared_weights(), std::nullopt, {.dtype = dtype, .limits = few});
  std::string said = refusal([&] { none.run_with_cache(tokens); });
  for (const char* part :
       {"7 prompts of 16 tokens on toy", "product_batch 21: limit \"few products\"",
        "not even one token fits: use the CPU"})
    EXPECT_NE(said.find(part), said.npos) << part << "\n" << said;
}

TEST_P(Split, TheRecordKeepsIt) {
  VerifiedCache cache = parts.run_with_cache(tokens, {.names = std::vector<std::string>{}});
  EXPECT_EQ(run_record_from_json(to_json(cache.record())).split, cache.record().split);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Split, testing::Values(DType::f32, DType::bf16),
                         [](const auto& i) { return std::string(name_of(i.param)); });

// An operator that is missing for the size of the first part alone.
TEST(SplitRun, NamesWhatFellBackInAnyPart) {
  HookedTransformer cpu = HookedTransformer::from_pretrained(golden::folder("three_layers"));
  HookedTransformer parts(cpu.shared_weights(), std::nullopt,
                          {.device = "simulated", .limits = room_for(3, cpu.config(), DType::f32)});
  SimulatedLimits before = *simulated_device().limits();
  std::int64_t part = 0;
  Interference missing = [&](const TensorId& id, const at::Tensor& x) {
    if (id.site == Site::embed) {
      SimulatedLimits limits = before;
      part += 1;
      if (part == 1) limits.missing = {"gelu"};
      if (part == 2) limits.missing = {"gelu", "bmm"};
      simulated_device().set_limits(limits);
    }
    return x;
  };
  VerifiedCache cache =
      parts.run_with_cache(parts.tokens_of(seven_prompts(), 7), {.interference = missing});
  simulated_device().set_limits(before);
  EXPECT_EQ(part, 3);
  EXPECT_EQ(cache.record().split, (std::vector<std::int64_t>{3, 3, 1}));
  std::vector<std::string> fallen = cache.record().fallbacks;
  std::ranges::sort(fallen);
  EXPECT_EQ(fallen, (std::vector<std::string>{"aten::bmm", "aten::gelu"}));
  EXPECT_EQ(cache.verdict().fallbacks, cache.record().fallbacks);
}

TEST(SplitRun, IsRefusedWhereTorchChangedBetweenItsParts) {
  Request request{
      .rows = {.batch = 2, .pos = 1, .tokens = {1, 2}, .positions = {0, 0}, .end_layer = 1},
      .plan = {},
      .on_demand = {}};
  auto run = [&](std::map<std::string, std::string> first,
                 std::map<std::string, std::string> last) {
    int part = 0;
    PassResult whole =
        run_in_parts(request, {1, 1}, nullptr, [&](const Request&, Sink*) -> PassResult {
          return {.output = own_copy(Array::of(std::vector<float>{1}, {1, 1, 1})),
                  .ambient = part++ == 0 ? first : last,
                  .fallbacks = {"aten::gelu"}};
        });
    EXPECT_EQ(whole.fallbacks, std::vector<std::string>{"aten::gelu"}) << "each once";
    return whole.ambient;
  };
  EXPECT_EQ(run({{"grad", "off"}}, {{"grad", "off"}}).at("grad"), "off");
  EXPECT_THROW(run({{"grad", "off"}}, {{"grad", "on"}}), std::runtime_error);
  EXPECT_THROW(run({{"grad", "off"}}, {}), std::runtime_error);
  EXPECT_THROW(run({}, {{"grad", "off"}}), std::runtime_error);
}

// Parts must have the same tensors and stages, or they could not be put together.
TEST(SplitPart, KeepsEveryStageOfEveryPrompt) {
  Plan plan(
      {{.kind = EditKind::zero, .site = Site::z, .layer = 0, .where = {.batch = -1, .head = 0}},
       {.kind = EditKind::zero, .site = Site::z, .layer = 0}});
  Request request{.rows = {.batch = 5,
                           .pos = 2,
                           .tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9},
                           .positions = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1},
                           .end_layer = 1},
                  .plan = plan};
  Request first = part_of(request, 0, 3), last = part_of(request, 3, 2);
  EXPECT_EQ(first.rows.tokens, (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(last.rows.tokens, (std::vector<std::int64_t>{6, 7, 8, 9}));
  EXPECT_EQ(last.rows.positions.size(), 4u);
  EXPECT_EQ(first.plan.edits().size(), 2u);
  EXPECT_EQ(first.plan.edits()[0].kind, EditKind::scale)
      << "of a prompt of another part: nothing changes";
  EXPECT_EQ(first.plan.edits()[0].factor, 1);
  EXPECT_EQ(last.plan.edits()[0].kind, EditKind::zero);
  EXPECT_EQ(last.plan.edits()[0].where.batch, 1);
}

TEST(SplitPart, TakesItsPromptsOfWhatARunStartsFrom) {
  Array residual = noise({5, 1, 6}, DType::f32), z = noise({5, 1, 3, 2}, DType::f32);
  Request request{.rows = {.batch = 5,
                           .pos = 1,
                           .tokens = {},
                           .positions = {0, 0, 0, 0, 0},
                           .end_layer = 1,
                           .unembeds = false,
                           .start_residual = residual,
                           .start_z = z},
                  .plan = {}};
  Request last = part_of(request, 3, 2);
  EXPECT_TRUE(identical(*last.rows.start_residual, residual.rows(3, 5)));
  EXPECT_TRUE(identical(*last.rows.start_z, z.rows(3, 5)));
}

// Angles and ALiBi's distances have no prompts: every part computes them for itself.
HookedTransformer limited(const std::string& name) {
  HookedTransformer whole = HookedTransformer::from_pretrained(golden::family_folder(name));
  std::int64_t bytes = 3 * whole.config().n_heads * kLength * kLength * 4;  // scores of three
  return {whole.shared_weights(),
          std::nullopt,
          {.limits = DeviceLimits{
               .device = "toy",
               .limits = {{.name = "a small buffer", .measure = Measure::bytes, .most = bytes}}}}};
}

class Tables : public testing::TestWithParam<std::tuple<std::string, bool>> {};
class SharedTables : public testing::TestWithParam<std::string> {};

TEST_P(Tables, AreSharedByThePartsUnlessPromptsArePadded) {
  auto [name, padded] = GetParam();
  HookedTransformer parts = limited(name);
  HookedTransformer whole(parts.shared_weights(), std::nullopt, {});
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 7 * kLength; ++i) ids.push_back(i * 37 % whole.config().d_vocab);
  Tokens tokens = whole.tokens_of(ids, 7);
  for (std::int64_t b = 0; b < 7 && padded; ++b) tokens.spans.push_back({b, kLength - b % 3});
  VerifiedCache a = whole.run_with_cache(tokens), b = parts.run_with_cache(tokens);
  EXPECT_GE(b.record().split.size(), 3u);
  EXPECT_EQ(b.verdict().n_compared(), a.verdict().n_compared());
  EXPECT_LT(golden::normalized_error(b.output(), a.output()), 1e-5);
}

// Where prompts are padded each part's are its own, and checked as such.
TEST_P(SharedTables, OfALaterPartAreRefusedWhereTheyAreWrong) {
  HookedTransformer parts = limited(GetParam());
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 7 * kLength; ++i) ids.push_back(i % parts.config().d_vocab);
  auto is_shared = [](Site site) { return is_table(site) || site == Site::position_bias; };
  auto tables = std::ranges::count_if(all_sites(), [&](const SiteInfo& row) {
    return is_shared(row.site) && exists(row.site, parts.config());
  });
  std::ptrdiff_t calls = 0;
  RunOptions wrong{.interference = [&](const TensorId& id, const at::Tensor& x) {
    bool second = is_shared(id.site) && id.layer == 0 && ++calls == tables + 1;
    return second ? at::mul(x, 1.001) : x;
  }};
  try {
    parts.run_with_cache(parts.tokens_of(ids, 7), wrong);
    ADD_FAILURE() << "not refused";
  } catch (const VerificationFailed& e) {
    Site first = e.verdict().first_failure()->id.site;
    EXPECT_TRUE(is_shared(first)) << hook_name(first, 0);
  }
  EXPECT_GT(calls, tables);
}

INSTANTIATE_TEST_SUITE_P(All, SharedTables,
                         testing::Values("llama_grouped", "bloom_alibi", "gemma3_windows"),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(All, Tables,
                         testing::Combine(testing::Values("llama_grouped", "bloom_alibi",
                                                          "gemma3_windows"),
                                          testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "_padded" : "");
                         });

}  // namespace
}  // namespace lenscpp
