// Grids against the naive loop, what must hold of any grid, faults in the middle of one, and what
// is refused.
#include "patching/patch_grid.h"

#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <gtest/gtest.h>

#include <cmath>
#include <iostream>

#include "tests/golden_cases.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

// Tiny runs on busy processors spend their time waking threads: one does here.
class PatchGrid : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }
  void TearDown() override { at::set_num_threads(threads_); }

 private:
  int threads_ = at::get_num_threads();
};

const HookedTransformer& tiny() {
  static HookedTransformer model = HookedTransformer::from_pretrained(
      std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi");
  return model;
}
constexpr const char* kClean = "When John and Mary went to the store, John gave the bag to";
constexpr const char* kCorrupted = "When John and Mary went to the store, Mary gave the bag to";

const VerifiedCache& clean() {
  static VerifiedCache cache = tiny().run_with_cache(tiny().to_tokens(kClean));
  return cache;
}
const VerifiedCache& corrupted() {
  static VerifiedCache cache = tiny().run_with_cache(tiny().to_tokens(kCorrupted));
  return cache;
}
Tokens corrupted_tokens() { return tiny().to_tokens(kCorrupted); }
LogitDiff names() { return {tiny().to_single_token(" Mary"), tiny().to_single_token(" John")}; }

// One verified run with this edit, by itself.
double alone(const Edit& edit, Direction direction = Direction::denoise) {
  Tokens base = direction == Direction::denoise ? corrupted_tokens() : tiny().to_tokens(kClean);
  return names()(tiny().forward(base, {.plan = Plan({edit})}))[0];
}

Edit patch(Site site, std::int64_t layer, const Selection& where,
           const VerifiedCache& source = clean()) {
  return {.kind = EditKind::patch,
          .site = site,
          .layer = layer,
          .where = where,
          .source = source[hook_name(site, layer)]};
}

Selection at_pos(std::int64_t pos) { return {.pos = std::vector<std::int64_t>{pos}}; }

double range() { return std::abs(names()(clean().output())[0] - names()(corrupted().output())[0]); }

constexpr Savings kNone{
    .layers = false, .rows = false, .positions = false, .equal = false, .output = false};

TEST_F(PatchGrid, EqualsTheNaiveLoopPatchByPatch) {
  for (Site site :
       {Site::resid_pre, Site::resid_mid, Site::attn_out, Site::mlp_out, Site::resid_post}) {
    GridResult grid =
        patch_grid(tiny(), clean(), corrupted_tokens(),
                   {.site = site, .over = {Axis::layer, Axis::pos}, .max_cells = 7}, names());
    ASSERT_EQ(grid.values().shape(), (Shape{4, 15}));
    EXPECT_EQ(grid.verdict().status, Status::verified);
    EXPECT_EQ(grid.verdict().mode, VerifyMode::checksum);
    EXPECT_GT(grid.verdict().n_projected, 0);
    for (std::int64_t l = 0; l < 4; ++l)
      for (std::int64_t p : {0, 2, 10, 14})
        EXPECT_NEAR(grid.values()[l * 15 + p], alone(patch(site, l, at_pos(p))), 1e-4 * range());
  }
}

TEST_F(PatchGrid, AxesComeInTheOrderAsked) {
  GridOptions options{.site = Site::z, .over = {Axis::head, Axis::pos, Axis::layer}};
  Array turned = patch_grid(tiny(), clean(), corrupted_tokens(), options, names()).values();
  options.over = {Axis::layer, Axis::pos, Axis::head};
  Array plain = patch_grid(tiny(), clean(), corrupted_tokens(), options, names()).values();
  ASSERT_EQ(turned.shape(), (Shape{4, 15, 4}));
  for (std::int64_t l = 0; l < 4; ++l)
    for (std::int64_t p = 0; p < 15; ++p)
      for (std::int64_t h = 0; h < 4; ++h)
        EXPECT_NEAR(turned[(h * 15 + p) * 4 + l], plain[(l * 15 + p) * 4 + h], 1e-4 * range());
  Selection where = at_pos(14);
  where.head = 3;
  EXPECT_NEAR(plain[(2 * 15 + 14) * 4 + 3], alone(patch(Site::z, 2, where)), 1e-4 * range());
}

TEST_F(PatchGrid, HeadsAndPatternsEqualTheNaiveLoop) {
  for (Site site : {Site::q, Site::k, Site::v, Site::z, Site::pattern}) {
    GridResult grid = patch_grid(tiny(), clean(), corrupted_tokens(),
                                 {.site = site, .over = {Axis::layer, Axis::head}}, names());
    for (std::int64_t l = 0; l < 4; ++l)
      for (std::int64_t h = 0; h < 4; ++h)
        EXPECT_NEAR(grid.values()[l * 4 + h], alone(patch(site, l, {.head = h})), 1e-4 * range());
  }
  GridOptions options{.site = Site::pattern, .over = {Axis::layer, Axis::query, Axis::key}};
  GridResult grid = patch_grid(tiny(), clean(), corrupted_tokens(), options, names());
  ASSERT_EQ(grid.values().shape(), (Shape{4, 15, 15}));
  Selection where = at_pos(11);
  where.key = 10;
  EXPECT_NEAR(grid.values()[(1 * 15 + 11) * 15 + 10], alone(patch(Site::pattern, 1, where)),
              1e-4 * range());
}

TEST_F(PatchGrid, NoisingPutsTheCorruptedRunIntoTheCleanPrompt) {
  GridOptions options{
      .site = Site::resid_pre, .over = {Axis::layer, Axis::pos}, .direction = Direction::noise};
  GridResult grid = patch_grid(tiny(), clean(), corrupted_tokens(), options, names());
  for (std::int64_t p : {9, 10, 14})
    EXPECT_NEAR(grid.values()[15 + p],
                alone(patch(Site::resid_pre, 1, at_pos(p), corrupted()), Direction::noise),
                1e-4 * range());
  Array scaled = grid.normalized();
  EXPECT_NEAR(scaled[10], 0, 1e-4);  // the one token that differs, before anything read it
  EXPECT_NEAR(scaled[0], 1, 1e-4);
}

TEST_F(PatchGrid, AllPositionsOfTheResidualStreamAreTheCleanRun) {
  GridResult grid = patch_grid(tiny(), clean(), corrupted_tokens(),
                               {.site = Site::resid_pre, .over = {Axis::layer}}, names());
  Array scaled = grid.normalized();
  for (std::int64_t l = 0; l < 4; ++l) EXPECT_NEAR(scaled[l], 1, 1e-5);
}

TEST_F(PatchGrid, ARunPatchedWithItselfIsUnchanged) {
  GridResult grid = patch_grid(tiny(), clean(), tiny().to_tokens(kClean),
                               {.site = Site::z, .over = {Axis::layer, Axis::head}}, names());
  for (std::int64_t i = 0; i < 16; ++i)
    EXPECT_NEAR(grid.values()[i], grid.clean(), 1e-5 * std::abs(grid.clean()));
  EXPECT_EQ(grid.verdict().equal_cells, 16);
  EXPECT_GT(grid.verdict().n_compared, 0);  // of the base run
  EXPECT_THROW(grid.normalized(), std::invalid_argument);
}

TEST_F(PatchGrid, SeveralPairsAreTheMeanOfEach) {
  std::vector<std::string> good{kClean,
                                "When Mary and John went to the store, Mary gave the bag to"};
  std::vector<std::string> bad{kCorrupted,
                               "When Mary and John went to the store, John gave the bag to"};
  std::int64_t mary = tiny().to_single_token(" Mary"), john = tiny().to_single_token(" John");
  GridOptions options{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}, .max_cells = 5};
  std::vector<std::int64_t> answers{mary, john}, wrongs{john, mary};
  GridResult both = patch_grid(tiny(), tiny().run_with_cache(tiny().to_tokens(good)),
                               tiny().to_tokens(bad), options, LogitDiff{answers, wrongs});
  std::vector<double> mean(60);
  for (std::size_t i : {0u, 1u}) {
    GridResult one =
        patch_grid(tiny(), tiny().run_with_cache(tiny().to_tokens(good[i])),
                   tiny().to_tokens(bad[i]), options, LogitDiff{answers[i], wrongs[i]});
    for (std::size_t c = 0; c < 60; ++c) mean[c] += one.values()[static_cast<std::int64_t>(c)] / 2;
  }
  for (std::size_t c = 0; c < 60; ++c)
    EXPECT_NEAR(both.values()[static_cast<std::int64_t>(c)], mean[c], 1e-4 * range());
  EXPECT_EQ(both.axes()[1].labels[1], "1:When");
  EXPECT_EQ(both.axes()[1].labels[2], "2");  // the prompts differ there
}

// Every combination of savings, at sites of every kind, against the plain path.
TEST_F(PatchGrid, SavingsChangeNoCellBeyondRounding) {
  struct Case {
    Site site;
    std::vector<Axis> over;
  };
  using enum Axis;
  auto names_of_all = hook_names(tiny().config(), /*on_demand=*/true);
  VerifiedCache everything =
      tiny().run_with_cache(tiny().to_tokens(kClean), {.names = names_of_all});
  const Metric metrics[] = {names(), Prob{names().answer}, KL{clean().output()},
                            [](const Array& logits) { return names()(logits); }};
  for (const Case& c :
       {Case{Site::embed, {pos}}, Case{Site::resid_pre, {layer, pos}},
        Case{Site::q_input, {layer, head}}, Case{Site::q, {layer, head, pos}},
        Case{Site::v, {layer, kv_head}}, Case{Site::attn_scores, {layer, query}},
        Case{Site::pattern, {layer, head, query}}, Case{Site::z, {layer, head, pos}},
        Case{Site::result, {layer, head}}, Case{Site::attn_out, {layer}},
        Case{Site::mlp_in, {layer, pos}}, Case{Site::mlp_post, {layer, pos}},
        Case{Site::ln2_scale, {layer, pos}}, Case{Site::resid_post, {layer, pos}},
        Case{Site::unembed_in, {pos}}, Case{Site::unembed_out, {pos}}})
    for (const Metric& metric : metrics) {
      GridOptions options{.site = c.site, .over = c.over, .savings = kNone};
      GridResult plain = patch_grid(tiny(), everything, corrupted(), options, metric);
      double range = std::abs(plain.clean() - plain.corrupted());
      for (int without = 0; without <= 5; ++without) {
        options.savings = {.layers = without != 1,
                           .rows = without != 5,
                           .positions = without != 2,
                           .equal = without != 3,
                           .output = without != 4};
        GridResult grid = patch_grid(tiny(), everything, corrupted(), options, metric);
        ASSERT_EQ(grid.verdict().status, Status::verified);
        for (std::int64_t i = 0; i < plain.values().numel(); ++i)
          ASSERT_NEAR(grid.values()[i], plain.values()[i], 1e-4 * range)
              << short_name(c.site) << " cell " << i << " without " << without << " "
              << metric.description();
      }
    }
}

// Every kind of site once, in each dtype, on the CPU and on a device whose memory is its own. The
// two narrow dtypes round the logits themselves: there the logits' size is the measure.
class SavingsOn : public PatchGrid,
                  public testing::WithParamInterface<std::tuple<std::string, DType>> {};

TEST_P(SavingsOn, ChangeNoCellBeyondRounding) {
  using enum Axis;
  auto [device, dtype] = GetParam();
  HookedTransformer model = tiny().moved(device, dtype);
  VerifiedCache good = model.run_with_cache(model.to_tokens("When John and Mary went"),
                                            {.names = hook_names(model.config(), true)}),
                bad = model.run_with_cache(model.to_tokens("When John and John went"));
  double largest = 0;
  for (double logit : good.output().to_doubles()) largest = std::max(largest, std::abs(logit));
  double range = std::abs(names()(good.output())[0] - names()(bad.output())[0]);
  bool narrow = dtype == DType::bf16 || dtype == DType::f16;
  double limit = narrow                ? 2 * unit_roundoff(dtype) * largest
                 : dtype == DType::f32 ? 1e-4 * range
                                       : 1e-12 * range;
  double furthest = 0;
  for (auto [site, over] :
       std::vector<std::pair<Site, std::vector<Axis>>>{{Site::embed, {pos}},
                                                       {Site::pos_embed, {pos}},
                                                       {Site::resid_pre, {layer, pos}},
                                                       {Site::k_input, {layer, kv_head}},
                                                       {Site::ln1_normalized, {layer}},
                                                       {Site::q, {layer, head}},
                                                       {Site::k, {layer, pos}},
                                                       {Site::v, {layer, kv_head}},
                                                       {Site::attn_scores, {layer, query}},
                                                       {Site::pattern, {layer, head}},
                                                       {Site::z, {layer, pos}},
                                                       {Site::result, {layer, head}},
                                                       {Site::attn_out, {layer}},
                                                       {Site::resid_mid, {layer, pos}},
                                                       {Site::mlp_in, {layer}},
                                                       {Site::ln2_scale, {layer}},
                                                       {Site::mlp_pre, {layer, pos}},
                                                       {Site::mlp_out, {layer, pos}},
                                                       {Site::resid_post, {layer, pos}},
                                                       {Site::ln_final_normalized, {pos}},
                                                       {Site::unembed_out, {pos}}}) {
    GridOptions options{.site = site, .over = over, .savings = kNone};
    GridResult plain = patch_grid(model, good, bad, options, names());
    options.savings = {};
    GridResult grid = patch_grid(model, good, bad, options, names());
    EXPECT_EQ(grid.verdict().status, Status::verified);
    for (std::int64_t i = 0; i < plain.values().numel(); ++i) {
      double moved = std::abs(grid.values()[i] - plain.values()[i]);
      EXPECT_LE(moved, limit) << short_name(site) << " cell " << i;
      furthest = std::max(furthest, moved);
    }
  }
  std::cout << device << " " << name_of(dtype) << ": at most " << furthest / limit
            << " of what is allowed\n";
}

INSTANTIATE_TEST_SUITE_P(All, SavingsOn,
                         testing::Combine(testing::Values("cpu", "simulated"),
                                          testing::Values(DType::f32, DType::f64, DType::bf16,
                                                          DType::f16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(name_of(std::get<1>(info.param)));
                         });

// bfloat16 rounds the sources and every product: the bar reaches as far as the sampled cells do.
TEST_F(PatchGrid, TheErrorBarCoversTheSampledCells) {
  HookedTransformer narrow = tiny().moved("cpu", DType::bf16);
  VerifiedCache good = narrow.run_with_cache(narrow.to_tokens(kClean)),
                bad = narrow.run_with_cache(narrow.to_tokens(kCorrupted));
  GridResult grid =
      patch_grid(narrow, good, bad, {.site = Site::z, .over = {Axis::layer, Axis::head}}, names());
  double furthest = 0;
  std::int64_t cell = 0;
  for (std::int64_t i = 0; i < 16; ++i)
    if (double moved = std::abs(grid.values()[i] - grid.corrupted()); moved > furthest)
      furthest = moved, cell = i;
  Edit edit = patch(Site::z, cell / 4, {.head = cell % 4}, good);
  edit.where.batch = 0;
  Request request{.rows = Rows::from_tokens(bad.record().tokens, 1, narrow.config()),
                  .plan = Plan({edit})};
  double exact = names()(run_in_float64(narrow.weights(), request, serial_for))[0];
  EXPECT_GE(grid.error_bar(), std::abs(grid.values()[cell] - exact));
}

TEST_F(PatchGrid, ANameWithALayerIsNoSite) {
  EXPECT_EQ(grid_site("attn.hook_z", tiny().config()), Site::z);
  try {
    grid_site("blocks.1.attn.hook_z", tiny().config());
    FAIL() << "a grid over all layers";
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("names a layer; a grid goes over all of them: give \"z\""),
              std::string::npos)
        << e.what();
  }
}

TEST_F(PatchGrid, RunsOnlyWhatChangesAnything) {
  GridOptions options{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}};
  GridResult grid = patch_grid(tiny(), clean(), corrupted(), options, names());
  // The prompts differ at position 10 alone; from layer 1 on, every later position reads it.
  EXPECT_EQ(grid.verdict().equal_cells, 60 - 1 - 3 * 5);
  EXPECT_NE(grid.verdict().summary().find("44 not run: they change nothing"), std::string::npos);
  for (std::int64_t p = 0; p < 10; ++p) EXPECT_EQ(grid.values()[p], grid.corrupted());
  options.savings.equal = false;
  EXPECT_EQ(patch_grid(tiny(), clean(), corrupted(), options, names()).verdict().equal_cells, 0);
  // In the last layer, what is written to another position than the one that is read goes nowhere.
  options = {.site = Site::mlp_out, .over = {Axis::layer, Axis::pos}};
  GridResult last = patch_grid(tiny(), clean(), corrupted(), options, names());
  for (std::int64_t p = 0; p < 14; ++p) EXPECT_EQ(last.values()[3 * 15 + p], last.corrupted());
  EXPECT_NE(last.values()[3 * 15 + 14], last.corrupted());
}

TEST_F(PatchGrid, AMetricOfAnEarlierPositionIsReadThere) {
  std::int64_t mary = tiny().to_single_token(" Mary"), john = tiny().to_single_token(" John");
  for (std::int64_t pos : {11, -3}) {
    LogitDiff metric{mary, john, pos};
    // A cell a run: none may begin behind the position that is read.
    GridOptions options{.site = Site::z, .over = {Axis::layer, Axis::pos}, .max_cells = 1};
    GridResult grid = patch_grid(tiny(), clean(), corrupted(), options, metric);
    options.savings = kNone;
    GridResult plain = patch_grid(tiny(), clean(), corrupted(), options, metric);
    double size = std::abs(plain.clean()) + std::abs(plain.corrupted());
    for (std::int64_t i = 0; i < 60; ++i)
      EXPECT_NEAR(grid.values()[i], plain.values()[i], 1e-4 * size);
    EXPECT_EQ(grid.values()[45 + 14], grid.corrupted());
  }
}

TEST_F(PatchGrid, LittleMemoryMakesMoreRunsOfTheSameValues) {
  GridOptions options{.site = Site::z, .over = {Axis::layer, Axis::head, Axis::pos}};
  GridResult at_once = patch_grid(tiny(), clean(), corrupted(), options, names());
  options.max_bytes = 1 << 18;
  GridResult in_parts = patch_grid(tiny(), clean(), corrupted(), options, names());
  EXPECT_GT(in_parts.verdict().runs, at_once.verdict().runs);
  for (std::int64_t i = 0; i < at_once.values().numel(); ++i)
    EXPECT_NEAR(in_parts.values()[i], at_once.values()[i], 1e-4 * range());
}

// A fault in a run that was cut short is refused as in a whole one, in each mode of checking.
TEST_F(PatchGrid, AFaultInASavingRunIsRefused) {
  for (VerifyMode mode : {VerifyMode::exact, VerifyMode::checksum})
    for (Site site :
         {Site::keys, Site::queries, Site::attn_resid, Site::mlp_pre, Site::resid_pre}) {
      GridOptions options{
          .site = Site::resid_pre, .over = {Axis::layer, Axis::pos}, .verify = mode};
      options.interference = [site](const TensorId& id, const at::Tensor& x) {
        return id == TensorId{site, 3} ? at::add(x, 0.01) : x;
      };
      try {
        patch_grid(tiny(), clean(), corrupted(), options, names());
        ADD_FAILURE() << "not refused";
      } catch (const GridFailed& e) {
        EXPECT_EQ(to_string(e.verdict().first_failure()->id), hook_name(site, 3));
        EXPECT_EQ(e.partial().verdict().refused_cells.size(), 16u);
      }
    }
}

// Behind attention, a patch's own layer is computed in its own rows, and refused there.
TEST_F(PatchGrid, AFaultInARunOfRowsIsRefusedAndCostsTheCellsOfItsLayer) {
  for (VerifyMode mode : {VerifyMode::exact, VerifyMode::checksum})
    for (Site site : {Site::resid_pre, Site::z, Site::attn_out, Site::mlp_pre, Site::resid_post}) {
      GridOptions options{
          .site = Site::z, .over = {Axis::layer, Axis::pos, Axis::head}, .verify = mode};
      options.interference = [site](const TensorId& id, const at::Tensor& x) {
        bool of_rows = id.layer == 1 && x.size(1) == 1;
        return of_rows && id.site == site && id.stage == 0 ? at::add(x, 0.01) : x;
      };
      try {
        patch_grid(tiny(), clean(), corrupted(), options, names());
        ADD_FAILURE() << "not refused";
      } catch (const GridFailed& e) {
        EXPECT_EQ(to_string(e.verdict().first_failure()->id), hook_name(site, 1));
        std::vector<std::int64_t> lost;  // of layer 1; before position 10 nothing changes
        for (std::int64_t cell = 60 + 10 * 4; cell < 120; ++cell) lost.push_back(cell);
        EXPECT_EQ(e.partial().verdict().refused_cells, lost);
        EXPECT_TRUE(std::isnan(e.partial().values()[lost[0]]));
        EXPECT_FALSE(std::isnan(e.partial().values()[0]));
      }
    }
}

TEST_F(PatchGrid, WhatPatchesAreCarriedOnWithMayNotChange) {
  std::optional<at::Tensor> carried;
  GridOptions options{.site = Site::z, .over = {Axis::layer, Axis::pos}};
  options.interference = [&](const TensorId& id, const at::Tensor& x) {
    if (id == TensorId{Site::resid_post, 1} && x.size(1) == 1) carried = x;
    return x;
  };
  options.progress = [&](std::int64_t, std::int64_t) {
    if (carried) carried->mutable_data_ptr<float>()[3] += 1;
    carried.reset();
  };
  EXPECT_THROW(patch_grid(tiny(), clean(), corrupted(), options, names()), NotVerified);
}

TEST_F(PatchGrid, SampledCellsAreRunAgainAsAWhole) {
  GridOptions options{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}};
  std::vector<std::int64_t> rows;
  options.interference = [&](const TensorId& id, const at::Tensor& x) {
    if (id == TensorId{Site::embed}) rows.push_back(x.size(0) * x.size(1));
    return x;
  };
  patch_grid(tiny(), clean(), corrupted(), options, names());
  EXPECT_EQ(rows, std::vector<std::int64_t>{2 * 15});
}

TEST_F(PatchGrid, SaysWhatItRanAndHowFarRoundingReaches) {
  int calls = 0;
  std::int64_t last = -1;
  GridOptions options{.site = Site::resid_pre,
                      .over = {Axis::layer, Axis::pos},
                      .savings = kNone,
                      .max_cells = 30,
                      .progress = [&](std::int64_t done, std::int64_t) { ++calls, last = done; }};
  GridResult grid = patch_grid(tiny(), clean(), corrupted(), options, names());
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(last, 60);
  EXPECT_GT(grid.verdict().n_compared, 0);
  EXPECT_GT(grid.verdict().worst_ratio, 0);
  EXPECT_LE(grid.verdict().worst_ratio, 1);
  EXPECT_GT(grid.error_bar(), 0);
  EXPECT_LT(grid.error_bar(), 1e-4);
  EXPECT_EQ(grid.clean(), names()(clean().output())[0]);
  EXPECT_EQ(grid.corrupted(), names()(corrupted().output())[0]);
  EXPECT_EQ(grid.axes()[0].labels, (std::vector<std::string>{"0", "1", "2", "3"}));
  EXPECT_EQ(grid.axes()[1].labels[10], "10: John/ Mary");
  EXPECT_EQ(grid.clean_record().tokens, clean().record().tokens);
  EXPECT_EQ(grid.corrupted_record().tokens, corrupted_tokens().ids);
}

TEST_F(PatchGrid, WhatProgressThrowsEndsTheSweep) {
  GridOptions options{.site = Site::resid_pre,
                      .over = {Axis::layer, Axis::pos},
                      .savings = kNone,
                      .max_cells = 10,
                      .progress = [](std::int64_t done, std::int64_t) {
                        if (done == 20) throw std::runtime_error("enough");
                      }};
  EXPECT_THROW(patch_grid(tiny(), clean(), corrupted(), options, names()), std::runtime_error);
}

TEST_F(PatchGrid, ASourceThatChangesDuringTheSweepIsNoticed) {
  VerifiedCache source = tiny().run_with_cache(tiny().to_tokens(kClean));
  auto* bytes = const_cast<std::byte*>(source["blocks.2.attn.hook_z"].bytes());
  GridOptions options{.site = Site::z,
                      .over = {Axis::layer, Axis::head},
                      .max_cells = 8,
                      .progress = [&](std::int64_t done, std::int64_t) {
                        if (done == 8) bytes[2] ^= std::byte{1};
                      }};
  EXPECT_THROW(patch_grid(tiny(), source, corrupted(), options, names()), NotVerified);
}

TEST_F(PatchGrid, UncheckedRunsAreMarked) {
  GridOptions options{
      .site = Site::z, .over = {Axis::layer, Axis::head}, .verify = VerifyMode::off};
  GridResult grid = patch_grid(tiny(), clean(), corrupted_tokens(), options, names());
  EXPECT_EQ(grid.verdict().status, Status::unverified);
  EXPECT_EQ(grid.verdict().n_compared, 0);
  EXPECT_TRUE(grid.verdict().summary().starts_with("UNVERIFIED"));
}

TEST_F(PatchGrid, AFaultInTheMiddleLosesItsCellsAndNoOthers) {
  GridOptions options{
      .site = Site::resid_pre, .over = {Axis::layer, Axis::pos}, .savings = kNone, .max_cells = 8};
  Array right = patch_grid(tiny(), clean(), corrupted(), options, names()).values();
  auto run = std::make_shared<int>(-1);
  options.interference = [run](const TensorId& id, const at::Tensor& x) {
    if (id == TensorId{Site::resid_pre, 0}) ++*run;
    return *run == 3 && id == TensorId{Site::z, 2} ? at::add(x, 0.01) : x;
  };
  try {
    patch_grid(tiny(), clean(), corrupted(), options, names());
    FAIL() << "the faulty run was not refused";
  } catch (const GridFailed& e) {
    const GridVerdict& verdict = e.partial().verdict();
    EXPECT_EQ(verdict.status, Status::invalid);
    EXPECT_EQ(verdict.refused_runs, 1);
    ASSERT_EQ(verdict.refused_cells.size(), 8u);
    EXPECT_NE(std::string(e.what()).find("blocks.2.attn.hook_z"), std::string::npos);
    EXPECT_EQ(to_string(e.verdict().first_failure()->id), "blocks.2.attn.hook_z");
    for (std::int64_t i = 0; i < 60; ++i) {
      if (std::ranges::count(verdict.refused_cells, i) > 0)
        EXPECT_TRUE(std::isnan(e.partial().values()[i]));
      else
        EXPECT_NEAR(e.partial().values()[i], right[i], 1e-12);
    }
  }
}

TEST_F(PatchGrid, AFaultyBaseRunIsRefused) {
  GridOptions options{.site = Site::z, .over = {Axis::layer, Axis::head}};
  options.interference = [](const TensorId& id, const at::Tensor& x) {
    return id == TensorId{Site::z, 2} ? at::add(x, 0.01) : x;
  };
  try {
    patch_grid(tiny(), clean(), corrupted_tokens(), options, names());
    FAIL() << "the faulty run was not refused";
  } catch (const GridFailed&) {
    FAIL() << "a base run is not a patched one";
  } catch (const VerificationFailed&) {
  }
}

// The message of the refusal.
std::string refusal(const VerifiedCache& good, const VerifiedCache& bad, const GridOptions& options,
                    const Metric& metric = names()) {
  try {
    patch_grid(tiny(), good, bad, options, metric);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

TEST_F(PatchGrid, RefusesPairsThatAreNone) {
  GridOptions options{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}};
  auto says = [&](const VerifiedCache& good, const VerifiedCache& bad, const std::string& what) {
    EXPECT_NE(refusal(good, bad, options).find(what), std::string::npos)
        << refusal(good, bad, options);
  };
  VerifiedCache shorter = tiny().run_with_cache(tiny().to_tokens("When John and"));
  says(clean(), shorter, "1 prompts of 15 tokens, the corrupted one 1 of 4");
  VerifiedCache edited = tiny().run_with_cache(
      corrupted_tokens(), {.plan = Plan({Edit{.kind = EditKind::zero, .site = Site::z}})});
  says(clean(), edited, "the corrupted run was edited itself");
  says(edited, corrupted(), "the clean run was edited itself");
  VerifiedCache few = tiny().run_with_cache(
      tiny().to_tokens(kClean), {.names = std::vector<std::string>{"blocks.0.hook_resid_pre"}});
  says(few, corrupted(), "does not hold blocks.1.hook_resid_pre");
  VerifiedCache sliced = tiny().run_with_cache(tiny().to_tokens(kClean),
                                               {.pos_slice = std::vector<std::int64_t>{1, 2}});
  says(sliced, corrupted(), "needed: every position, [1, 15, 128]");
  VerifiedCache stopped = tiny().run_with_cache(
      tiny().to_tokens(kClean),
      {.filter = [](const std::string& n) { return n == "hook_embed"; }, .stop_at_layer = 2});
  says(stopped, corrupted(), "not one from tokens to logits");
  HookedTransformer raw = HookedTransformer::from_pretrained(
      std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi",
      {.processing = Processing::none()});
  says(raw.run_with_cache(raw.to_tokens(kClean)), corrupted(), "the clean run is of another model");
}

TEST_F(PatchGrid, RefusesSitesAxesAndMetricsThatAreNone) {
  auto says = [&](const GridOptions& options, const std::string& what,
                  const Metric& metric = names()) {
    std::string message = refusal(clean(), corrupted(), options, metric);
    EXPECT_NE(message.find(what), std::string::npos) << message;
  };
  says({.site = Site::tokens, .over = {Axis::pos}}, "cannot be patched in this model; allowed: ");
  says({.site = Site::keys, .over = {Axis::layer}}, "cannot be patched");
  says({.site = Site::resid_pre, .over = {Axis::layer, Axis::head}},
       "no axis head; allowed: layer, pos");
  says({.site = Site::pattern, .over = {Axis::layer, Axis::d_model}},
       "allowed: layer, head, query, key");
  says({.site = Site::resid_pre, .over = {Axis::pos}}, "layer is missing");
  says({.site = Site::embed, .over = {}}, "over is empty");
  says({.site = Site::resid_pre, .over = {Axis::layer, Axis::pos, Axis::pos}}, "given twice");
  GridOptions fine{.site = Site::resid_pre, .over = {Axis::layer, Axis::pos}, .savings = kNone};
  says(fine, "the metric is nan for the clean run",
       [](const Array&) { return std::vector<double>{NAN}; });
  auto calls = std::make_shared<int>(0);
  says(fine, "the metric is inf at layer 0, pos 0",
       [calls](const Array&) { return std::vector<double>{++*calls > 2 ? INFINITY : 0.5}; });
  fine.max_cells = 0;
  EXPECT_THROW(patch_grid(tiny(), clean(), corrupted(), fine, names()), std::out_of_range);
}

TEST_F(PatchGrid, NamesOfSitesAndAxesAreUnderstood) {
  const Config& config = tiny().config();
  for (auto [name, site] : {std::pair<std::string_view, Site>{"resid_pre", Site::resid_pre},
                            {"head_z", Site::z},
                            {"z", Site::z},
                            {"attn.hook_z", Site::z},
                            {"hook_embed", Site::embed},
                            {"embed", Site::embed},
                            {"attn", Site::pattern},
                            {"mlp_post", Site::mlp_post},
                            {"ln1.hook_scale", Site::ln1_scale}})
    EXPECT_EQ(grid_site(name, config), site) << name;
  const Config encoder = read_config(golden::encoder_folder("bert_masked_lm"));
  for (const SiteInfo& row : all_sites())
    for (const Config* one : {&config, &encoder})
      if (row.presence != Presence::internal && exists(row.site, *one))
        EXPECT_EQ(grid_site(short_name(row.site), *one), row.site);
  EXPECT_EQ(grid_site("ln1.hook_scale", encoder), Site::mid_ln_scale);
  EXPECT_EQ(grid_site("rot_q", config), Site::rot_q);  // which check_site refuses
  EXPECT_THROW(grid_site("resid_prr", config), std::invalid_argument);
  EXPECT_EQ(grid_axis(Site::pattern, "dest_pos"), Axis::query);
  EXPECT_EQ(grid_axis(Site::pattern, "src_pos"), Axis::key);
  EXPECT_EQ(grid_axis(Site::pattern, "pos"), Axis::query);
  EXPECT_EQ(grid_axis(Site::k, "head_index"), Axis::kv_head);
  EXPECT_THROW(grid_axis(Site::resid_pre, "head"), std::invalid_argument);
  EXPECT_THROW(grid_axis(Site::resid_pre, "posi"), std::invalid_argument);
  EXPECT_EQ(grid_hooks(Site::z, config).back(), "blocks.3.attn.hook_z");
}

}  // namespace
}  // namespace lenscpp
