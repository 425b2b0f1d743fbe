// Grids over encoders, where every position sees every other, and over padded prompts: what is
// saved changes no cell, and what would be read of padding is refused.
#include <gtest/gtest.h>

#include <cmath>

#include "patching/patch_grid.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

struct Grid {
  std::string name, metric;
  std::filesystem::path folder;
  bool padded;
};

Tokens tokens_of(const HookedTransformer& model, bool padded, std::int64_t step) {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < 2 * 7; ++i) ids.push_back((i * step + 3) % model.config().d_vocab);
  Tokens tokens = model.tokens_of(ids, 2);
  if (padded) tokens.spans = {{0, 7}, {3, 7}};
  return tokens;
}

class PaddedGrid : public testing::TestWithParam<Grid> {};

TEST_P(PaddedGrid, SavingsChangeNoCellBeyondRounding) {
  const Grid& g = GetParam();
  HookedTransformer model = HookedTransformer::from_pretrained(g.folder);
  RunOptions everything{.names = hook_names(model.config())};
  VerifiedCache clean = model.run_with_cache(tokens_of(model, g.padded, 5), everything),
                corrupted = model.run_with_cache(tokens_of(model, g.padded, 3), everything);
  using enum Axis;
  struct Case {
    Site site;
    std::vector<Axis> over;
  };
  for (const Case& c : {Case{Site::embed, {pos}}, Case{Site::resid_pre, {layer, pos}},
                        Case{Site::z, {layer, head, pos}}, Case{Site::mlp_out, {layer, pos}},
                        Case{Site::v, {layer, pos}}, Case{Site::pattern, {layer, head}}}) {
    GridOptions options{.site = c.site, .over = c.over};
    LogitDiff metric{.answer = 1, .wrong = 0, .pos = g.metric == "last" ? -1 : 4};
    GridResult saving = patch_grid(model, clean, corrupted, options, metric);
    options.savings = {
        .layers = false, .rows = false, .positions = false, .equal = false, .output = false};
    GridResult plain = patch_grid(model, clean, corrupted, options, metric);
    ASSERT_EQ(saving.verdict().status, Status::verified);
    double range = std::abs(plain.clean() - plain.corrupted());
    for (std::int64_t i = 0; i < plain.values().numel(); ++i)
      ASSERT_NEAR(saving.values()[i], plain.values()[i], 1e-4 * range)
          << short_name(c.site) << " cell " << i;
    EXPECT_LT(saving.error_bar(), 1e-4);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PaddedGrid,
    testing::Values(
        Grid{"masked_lm", "fifth", golden::encoder_folder("bert_masked_lm"), false},
        Grid{"masked_lm_padded", "fifth", golden::encoder_folder("distilbert_masked_lm"), true},
        Grid{"classifier_padded", "last", golden::encoder_folder("bert_classifier"), true},
        Grid{"rotary_padded", "last", golden::family_folder("llama_grouped"), true},
        Grid{"alibi_padded", "last", golden::family_folder("bloom_alibi"), true},
        Grid{"learned_padded", "fifth", golden::family_folder("opt_tied"), true}),
    [](const auto& info) { return info.param.name; });

// Columns beyond the context hold tokens within it.
TEST(PaddedGrids, RowsStandWhereTheirTokensDo) {
  HookedTransformer model = HookedTransformer::from_pretrained(golden::family_folder("opt_tied"));
  std::int64_t n = model.config().n_ctx + 4;
  auto run = [&](std::int64_t step) {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < n; ++i) ids.push_back((i * step + 3) % model.config().d_vocab);
    Tokens tokens{.batch = 1, .pos = n, .ids = std::move(ids), .spans = {{6, n}}};
    return model.run_with_cache(tokens);
  };
  VerifiedCache clean = run(5), corrupted = run(3);
  for (Site site : {Site::z, Site::mlp_out, Site::resid_pre}) {
    GridOptions options{.site = site, .over = {Axis::layer, Axis::pos}};
    LogitDiff metric{.answer = 1, .wrong = 0};
    EXPECT_EQ(patch_grid(model, clean, corrupted, options, metric).verdict().status,
              Status::verified);
  }
}

TEST(PaddedGrids, MetricsThatReadPaddingAreRefused) {
  HookedTransformer model =
      HookedTransformer::from_pretrained(golden::family_folder("llama_grouped"));
  VerifiedCache clean = model.run_with_cache(tokens_of(model, true, 5)),
                corrupted = model.run_with_cache(tokens_of(model, true, 3));
  GridOptions options{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}};
  auto grid = [&](std::int64_t pos) {
    return patch_grid(model, clean, corrupted, options,
                      LogitDiff{.answer = 1, .wrong = 0, .pos = pos});
  };
  EXPECT_NO_THROW(grid(3));
  EXPECT_THROW(grid(2), std::invalid_argument);
  EXPECT_THROW(grid(-5), std::invalid_argument);
  EXPECT_THROW(patch_grid(model, clean, corrupted, options, Loss{clean.record().tokens}),
               std::invalid_argument);
  VerifiedCache whole = model.run_with_cache(tokens_of(model, false, 3));
  EXPECT_THROW(patch_grid(model, clean, whole, options, LogitDiff{.answer = 1, .wrong = 0}),
               std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
