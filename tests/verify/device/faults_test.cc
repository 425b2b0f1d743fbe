#include "verify/device/faults.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <set>

namespace lenscpp {
namespace {

Config small() {
  return {.family = "gpt2",
          .n_layers = 2,
          .n_heads = 3,
          .n_kv_heads = 3,
          .d_model = 6,
          .d_head = 2,
          .d_mlp = 5,
          .d_vocab = 11,
          .n_ctx = 8,
          .norm_eps = 1e-5,
          .norm = NormKind::layer_norm,
          .activation = Activation::relu,
          .positions = PositionKind::learned,
          .topology = Topology::sequential,
          .scale_attn_by_inverse_layer = false,
          .tied_unembedding = true,
          .stored_dtype = DType::f32};
}
constexpr Extents kExtents{.batch = 2, .pos = 4, .key = 4};

// Different numbers everywhere, none zero; scores masked as they should be.
Array values(Site site, DType dtype, double first = 1) {
  Shape shape = shape_of(site, small(), kExtents);
  MutableArray x(shape, site == Site::tokens ? DType::i64 : stored_dtype(site, dtype));
  for (std::int64_t i = 0; i < x.numel(); ++i)
    x.set(i, first + static_cast<double>(i) / (site == Site::tokens ? 1 : 64));
  if (site == Site::attn_scores)
    for (std::int64_t i = 0; i < x.numel(); ++i)
      if (i % 4 > i / 4 % 4) x.set(i, -std::numeric_limits<double>::infinity());
  return std::move(x).freeze();
}

Array inject(const FaultSpec& spec, const TensorId& id, const Array& value) {
  return FaultInjector({spec}, small())(id, value);
}

bool same_bits(const Array& a, const Array& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0;
}

// Flat indices whose values differ.
std::vector<std::int64_t> changed(const Array& a, const Array& b) {
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < a.numel(); ++i)
    if (!(a[i] == b[i])) indices.push_back(i);
  return indices;
}
// Those elements of [batch, pos, head, d_head] = [2, 4, 3, 2] for which `wrong` holds.
std::vector<std::int64_t> where(
    const std::function<bool(std::int64_t batch, std::int64_t pos, std::int64_t head)>& wrong) {
  std::vector<std::int64_t> indices;
  for (std::int64_t i = 0; i < 48; ++i)
    if (wrong(i / 24, i / 6 % 4, i / 2 % 3)) indices.push_back(i);
  return indices;
}

void expect_message(const std::function<void()>& call, const std::vector<std::string>& parts) {
  try {
    call();
    ADD_FAILURE() << "not refused";
  } catch (const std::exception& e) {
    for (const std::string& part : parts)
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << e.what() << "\nlacks: " << part;
  }
}

const TensorId kZ{Site::z, 1};
const TensorId kScores{Site::attn_scores, 0};

class FaultsOfDType : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(All, FaultsOfDType,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

TEST_P(FaultsOfDType, EveryFaultKeepsShapeAndDTypeAndNeverWritesToItsInput) {
  for (const FaultInfo& fault : fault_catalogue())
    for (const SiteInfo& row : all_sites()) {
      Array before = values(row.site, GetParam());
      std::string digest = before.digest();
      Array after = inject({.name = std::string(fault.name)}, {row.site, 0}, before);
      EXPECT_EQ(after.shape(), before.shape()) << fault.name;
      EXPECT_EQ(after.dtype(), before.dtype()) << fault.name;
      EXPECT_EQ(before.digest(), digest) << fault.name << " wrote to its input at " << row.name;
      if (!fault.applies(row.site)) {
        EXPECT_EQ(after.bytes(), before.bytes()) << fault.name << " at " << row.name;
      }
    }
}

TEST_P(FaultsOfDType, EveryFaultChangesSomethingAtEachOfItsSites) {
  for (const FaultInfo& fault : fault_catalogue())
    for (const SiteInfo& row : all_sites()) {
      if (!fault.applies(row.site) || !exists(row.site, small())) continue;
      FaultSpec spec{.name = std::string(fault.name)};
      if (fault.name == "round_bits") spec.parameters = {{"bits", 3}};
      if (fault.name == "inf") spec.parameters = {{"sign", 1}};
      if (fault.name == "nan_above") spec.parameters = {{"threshold", 0.5}};
      if (fault.name == "flush_small") spec.parameters = {{"threshold", 1}};
      Array before = values(row.site, GetParam());
      // Of masked scores, an element drawn may be one that this fault leaves as it is.
      bool moved = false;
      for (std::uint64_t seed = 0; seed < 8 && !moved; ++seed) {
        spec.seed = seed;
        moved = !same_bits(inject(spec, {row.site, 0}, before), before);
      }
      EXPECT_TRUE(moved) << fault.name << " at " << row.name;
    }
}

TEST_P(FaultsOfDType, OneElementAddsDeltaToOneElement) {
  Array before = values(Site::z, GetParam());
  Array after =
      inject({.name = "one_element", .parameters = {{"index", 17}, {"delta", 2}}}, kZ, before);
  EXPECT_EQ(changed(before, after), std::vector<std::int64_t>{17});
  EXPECT_EQ(after[17], round_to(GetParam(), before[17] + 2));
}

TEST_P(FaultsOfDType, ScaleMultipliesEverything) {
  Array before = values(Site::z, GetParam());
  Array after = inject({.name = "scale"}, kZ, before);
  for (std::int64_t i = 0; i < before.numel(); ++i)
    EXPECT_EQ(after[i], round_to(GetParam(), before[i] * 1.01));
}

TEST_P(FaultsOfDType, RoundBitsKeepsAsManyBitsAndRoundsToNearest) {
  Array before = values(Site::z, GetParam(), 1 + 0x1p-20);
  for (double bits : {11.0, 8.0}) {
    Array after = inject({.name = "round_bits", .parameters = {{"bits", bits}}}, kZ, before);
    for (std::int64_t i = 0; i < before.numel(); ++i) {
      EXPECT_LE(std::abs(after[i] - before[i]), std::abs(before[i]) * std::exp2(-bits));
      double scaled = std::ldexp(after[i], static_cast<int>(bits) - std::ilogb(after[i]) - 1);
      EXPECT_EQ(scaled, std::floor(scaled)) << after[i];
    }
    bool has_fewer = GetParam() == DType::bf16 || (GetParam() == DType::f16 && bits == 11);
    if (has_fewer) {
      EXPECT_EQ(after.bytes(), before.bytes()) << "a narrow type has no bits to lose: not fired";
    }
  }
}

TEST(Faults, NanInfAndSignTouchOneElement) {
  Array before = values(Site::z, DType::f32);
  Array x = inject({.name = "nan", .parameters = {{"index", 3}}}, kZ, before);
  EXPECT_TRUE(std::isnan(x[3]));
  EXPECT_EQ(changed(before, x), std::vector<std::int64_t>{3});
  x = inject({.name = "inf", .parameters = {{"index", 4}, {"sign", -1}}}, kZ, before);
  EXPECT_EQ(x[4], -std::numeric_limits<double>::infinity());
  EXPECT_EQ(changed(before, x), std::vector<std::int64_t>{4});
  EXPECT_EQ(inject({.name = "inf", .parameters = {{"index", 4}}}, kZ, before)[4],
            std::numeric_limits<double>::infinity());
  x = inject({.name = "sign", .parameters = {{"index", 5}}}, kZ, before);
  EXPECT_EQ(x[5], -before[5]);
  EXPECT_EQ(changed(before, x), std::vector<std::int64_t>{5});
}

TEST(Faults, RowHeadAndZeroFromTouchTheirRegionsOnly) {
  Array before = values(Site::z, DType::f32);
  auto in_row = where([](auto batch, auto pos, auto) { return batch == 1 && pos == 2; });
  auto in_head = where([](auto, auto, auto head) { return head == 1; });
  struct Case {
    FaultSpec spec;
    std::vector<std::int64_t> region;
  };
  for (const Case& c :
       {Case{{.name = "row", .parameters = {{"batch", 1}, {"pos", 2}}}, in_row},
        Case{{.name = "head", .parameters = {{"head", 1}}}, in_head},
        Case{{.name = "zero_from", .parameters = {{"pos", 3}}},
             where([](auto, auto pos, auto) { return pos == 3; })},
        Case{{.name = "zero_from"}, where([](auto, auto pos, auto) { return pos >= 2; })}}) {
    Array zeroed = inject(c.spec, kZ, before);
    EXPECT_EQ(changed(before, zeroed), c.region) << c.spec.name;
    for (std::int64_t i : c.region) EXPECT_EQ(zeroed[i], 0);
    if (c.spec.name == "zero_from") continue;
    FaultSpec other = c.spec;
    other.parameters["garbage"] = 1;
    Array garbage = inject(other, kZ, before);
    EXPECT_EQ(changed(before, garbage), c.region) << c.spec.name;
    for (std::int64_t i : c.region)
      EXPECT_LT(std::abs(garbage[i]), 4) << "of the tensor's own size";
    other = c.spec;
    other.parameters["delta"] = 0.5;
    Array shifted = inject(other, kZ, before);
    EXPECT_EQ(changed(before, shifted), c.region) << c.spec.name;
    for (std::int64_t i : c.region) EXPECT_EQ(shifted[i], before[i] + 0.5);
  }
}

TEST(Faults, RowOfScoresIsAQuery) {
  Array before = values(Site::attn_scores, DType::f32);
  Array after = inject({.name = "row", .parameters = {{"batch", 1}, {"pos", 2}}}, kScores, before);
  for (std::int64_t i : changed(before, after)) {
    EXPECT_EQ(i / 48, 1);
    EXPECT_EQ(i / 4 % 4, 2);
  }
  EXPECT_EQ(changed(before, after).size(), 12);
}

TEST(Faults, SwappedHeadsChangePlacesAndNothingElseMoves) {
  Array before = values(Site::z, DType::f32);
  Array after = inject({.name = "swap_heads", .parameters = {{"a", 0}, {"b", 2}}}, kZ, before);
  EXPECT_EQ(changed(before, after), where([](auto, auto, auto head) { return head != 1; }));
  for (std::int64_t i = 0; i < 48; ++i)
    EXPECT_EQ(after[i], before[i / 2 % 3 == 0 ? i + 4 : i / 2 % 3 == 2 ? i - 4 : i]);
  Array drawn = inject({.name = "swap_heads"}, kZ, before);
  EXPECT_EQ(changed(before, drawn).size(), 32) << "two different heads are drawn";
}

TEST(Faults, RowsShiftWithinTheirPrompt) {
  Array before = values(Site::z, DType::f32);
  for (std::int64_t by : {1, -1, 5}) {
    Array after =
        inject({.name = "shift_rows", .parameters = {{"by", static_cast<double>(by)}}}, kZ, before);
    for (std::int64_t i = 0; i < 48; ++i) {
      std::int64_t batch = i / 24, pos = (i / 6 % 4 - by + 8) % 4;
      EXPECT_EQ(after[i], before[batch * 24 + pos * 6 + i % 6]);
    }
  }
}

TEST(Faults, TileIsARectangleAndIsCutAtTheEdges) {
  Array before = values(Site::mlp_pre, DType::f32);  // 8 rows of 5
  Array after = inject(
      {.name = "tile", .parameters = {{"row", 6}, {"column", 1}, {"height", 4}, {"width", 2}}},
      {Site::mlp_pre, 0}, before);
  EXPECT_EQ(changed(before, after), (std::vector<std::int64_t>{31, 32, 36, 37}));
  for (std::int64_t i : changed(before, after)) EXPECT_EQ(after[i], 0);
}

TEST(Faults, StaleIsTheLayerBeforeElseAnythingOfThatShapeElseShiftedRows) {
  Config config = small();
  Array q0 = values(Site::q, DType::f32, 1), k0 = values(Site::k, DType::f32, 100),
        q1 = values(Site::q, DType::f32, 200);
  FaultInjector injector({{.name = "stale"}}, config);
  Array first = injector({Site::q, 0}, q0);
  EXPECT_TRUE(same_bits(first, inject({.name = "shift_rows"}, {Site::q, 0}, q0)));
  EXPECT_TRUE(same_bits(injector({Site::k, 0}, k0), q0)) << "the last of that shape";
  EXPECT_TRUE(same_bits(injector({Site::q, 1}, q1), q0)) << "the same site, the layer before";
  EXPECT_TRUE(same_bits(injector({Site::q, 0}, q0), q1)) << "the same site, the call before";
  EXPECT_EQ(injector.fired(), 4);
}

TEST(Faults, StaleKnowsWhatPassedWhereItDoesNotFire) {
  FaultInjector injector({{.name = "stale", .hook = "blocks.1.attn.hook_q"}}, small());
  EXPECT_TRUE(injector.wants({Site::q, 0}));
  Array q0 = values(Site::q, DType::f32, 1), q1 = values(Site::q, DType::f32, 200);
  EXPECT_EQ(injector({Site::q, 0}, q0).bytes(), q0.bytes());
  EXPECT_TRUE(same_bits(injector({Site::q, 1}, q1), q0));
  EXPECT_EQ(injector.fired_names(), std::vector<std::string>{"blocks.1.attn.hook_q"});
}

TEST(Faults, ABitIsThatOfTheStoredForm) {
  Array before = values(Site::z, DType::bf16);
  for (int bit : {0, 7, 15}) {
    Array after = inject(
        {.name = "bit_flip", .parameters = {{"index", 5}, {"bit", static_cast<double>(bit)}}}, kZ,
        before);
    for (std::int64_t i = 0; i < before.numel(); ++i) {
      auto bits = [&](const Array& a) {
        return a.as<std::uint16_t>()[static_cast<std::size_t>(i)];
      };
      EXPECT_EQ(bits(after) ^ bits(before), i == 5 ? 1 << bit : 0) << "bit " << bit;
    }
  }
}

TEST(Faults, PoisonIsOneNumberInOnePosition) {
  Array before = values(Site::z, DType::f32);
  Array after = inject({.name = "poison", .parameters = {{"pos", 2}, {"value", 7e9}}}, kZ, before);
  for (std::int64_t i = 0; i < before.numel(); ++i)
    EXPECT_EQ(after[i], i / 6 % 4 == 2 ? static_cast<double>(7e9f) : before[i]);
}

// Of root mean squares: the numbers of a tensor of 48 go from 1 to 1.73, their rms is 1.38.
TEST(Faults, ThresholdsAreInRootMeanSquaresOfTheTensor) {
  Array before = values(Site::z, DType::f32);
  double square = 0;
  for (std::int64_t i = 0; i < before.numel(); ++i) square += before[i] * before[i];
  double rms = std::sqrt(square / static_cast<double>(before.numel()));
  Array nans = inject({.name = "nan_above", .parameters = {{"threshold", 1.1}}}, kZ, before),
        zeros = inject({.name = "flush_small", .parameters = {{"threshold", 0.9}}}, kZ, before);
  for (std::int64_t i = 0; i < before.numel(); ++i) {
    EXPECT_EQ(std::isnan(nans[i]), before[i] > 1.1 * rms);
    EXPECT_EQ(zeros[i], before[i] < 0.9 * rms ? 0 : before[i]);
  }
}

TEST(Faults, AUniformRowIsThatOfOneQueryInEveryHead) {
  Array before = values(Site::pattern, DType::f32);
  Array after =
      inject({.name = "uniform_row", .parameters = {{"query", 2}}}, {Site::pattern, 0}, before);
  for (std::int64_t i = 0; i < before.numel(); ++i) {
    bool seen = i / 4 % 4 == 2 && i % 4 <= 2;
    EXPECT_EQ(after[i], seen ? static_cast<double>(1.0f / 3) : before[i]);
  }
}

TEST(Faults, TheFirstTwoPromptsChangePlaces) {
  Array before = values(Site::z, DType::f32), after = inject({.name = "swap_prompts"}, kZ, before);
  for (std::int64_t i = 0; i < 48; ++i) EXPECT_EQ(after[i], before[(i + 24) % 48]);
  Array one = before.rows(0, 1);
  EXPECT_TRUE(same_bits(inject({.name = "swap_prompts"}, kZ, one), one));
}

TEST(Faults, MaskIgnoredFromAQueryOn) {
  Array before = values(Site::attn_scores, DType::f32);
  Array after = inject({.name = "mask_ignored", .parameters = {{"query", 1}}}, kScores, before);
  for (std::int64_t i = 0; i < before.numel(); ++i) {
    std::int64_t query = i / 4 % 4, key = i % 4;
    EXPECT_EQ(std::isfinite(after[i]), query >= 1 || key == 0) << query << " " << key;
    if (key <= query) {
      EXPECT_EQ(after[i], before[i]);
    }
  }
}

TEST(Faults, MaskOffByOneInBothDirections) {
  Array before = values(Site::attn_scores, DType::f32);
  Array future = inject({.name = "mask_off_by_one"}, kScores, before);
  Array lost = inject({.name = "mask_off_by_one", .parameters = {{"by", -1}}}, kScores, before);
  for (std::int64_t i = 0; i < before.numel(); ++i) {
    std::int64_t query = i / 4 % 4, key = i % 4;
    EXPECT_EQ(future[i], key == query + 1 ? before[i - 1] : before[i])
        << "query " << query << " key " << key;
    bool hidden = key == query && query > 0;
    EXPECT_EQ(lost[i], hidden ? -std::numeric_limits<double>::infinity() : before[i]);
  }
}

TEST(Faults, MaskGroupSharesTheMaskOfItsLastQuery) {
  Array before = values(Site::attn_scores, DType::f32);
  Array after = inject({.name = "mask_group", .parameters = {{"group", 2}}}, kScores, before);
  for (std::int64_t i = 0; i < before.numel(); ++i) {
    std::int64_t query = i / 4 % 4, key = i % 4;
    bool visible = key <= query / 2 * 2 + 1;
    EXPECT_EQ(std::isfinite(after[i]), visible) << "query " << query << " key " << key;
    if (key <= query) {
      EXPECT_EQ(after[i], before[i]);
    }
  }
  // Of a run that continues another: 2 queries over 4 keys are queries 2 and 3.
  Array late = before.reshaped({2, 3, 4, 4}).rows(0, 1);
  MutableArray queries({1, 3, 2, 4}, DType::f32);
  for (std::int64_t h = 0; h < 3; ++h)
    for (std::int64_t i = 0; i < 8; ++i) queries.set(h * 8 + i, late[h * 16 + 8 + i]);
  Array two = std::move(queries).freeze();
  EXPECT_EQ(
      changed(two, inject({.name = "mask_group", .parameters = {{"group", 2}}}, kScores, two)),
      (std::vector<std::int64_t>{3, 11, 19}));
}

TEST(FaultInjector, FiresAtTheNamedHookOnly) {
  Config config = small();
  Array x = values(Site::z, DType::f32);
  struct Case {
    std::optional<std::string> hook;
    std::optional<std::int64_t> layer;
    std::vector<TensorId> fires, leaves;
  };
  TensorId z0{Site::z, 0}, z1{Site::z, 1}, q1{Site::q, 1}, logits{Site::unembed_out};
  for (const Case& c :
       {Case{"attn.hook_z", {}, {z0, z1}, {q1}}, Case{"z", {}, {z0, z1}, {q1}},
        Case{"blocks.1.attn.hook_z", {}, {z1}, {z0, q1}}, Case{"attn.hook_z", 1, {z1}, {z0}},
        Case{"attn.hook_z", -2, {z0}, {z1}}, Case{"blocks.1.attn.hook_z", 1, {z1}, {z0}},
        Case{{}, 1, {z1, q1}, {z0, logits}}, Case{{}, {}, {z0, q1, logits}, {}},
        Case{"ln1.out", {}, {{Site::ln1_out, 1}}, {z1}},
        Case{"ln_final.hook_normalized", {}, {{Site::ln_final_normalized}}, {z1}}}) {
    for (const TensorId& id : c.fires)
      EXPECT_FALSE(
          same_bits(inject({.name = "one_element", .hook = c.hook, .layer = c.layer}, id, x), x))
          << to_string(id);
    for (const TensorId& id : c.leaves) {
      FaultInjector injector({{.name = "one_element", .hook = c.hook, .layer = c.layer}}, config);
      EXPECT_FALSE(injector.wants(id));
      EXPECT_EQ(injector(id, x).bytes(), x.bytes()) << "the same handle";
      EXPECT_EQ(injector.fired(), 0);
    }
  }
}

TEST(FaultInjector, FiresAtOneStageOfAnEditedTensor) {
  Array x = values(Site::z, DType::f32);
  for (std::int64_t stage : {0, 1, 2}) {
    FaultInjector injector({{.name = "one_element", .hook = "attn.hook_z", .stage = 1}}, small());
    injector({Site::z, 1, stage}, x);
    EXPECT_EQ(injector.fired(), stage == 1);
  }
}

TEST(FaultInjector, WhatIsDrawnDependsOnSeedAndTensorAlone) {
  Array x = values(Site::z, DType::f32);
  FaultSpec spec{.name = "row", .parameters = {{"garbage", 1}}, .seed = 3};
  FaultInjector once({spec}, small()), after_others({spec}, small());
  for (Site site : {Site::q, Site::k, Site::v}) after_others({site, 0}, values(site, DType::f32));
  EXPECT_TRUE(same_bits(once(kZ, x), after_others(kZ, x)));
  EXPECT_TRUE(same_bits(once(kZ, x), inject(spec, kZ, x)));
  std::set<std::string> different;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    spec.seed = seed | seed << 40;
    different.insert(inject(spec, kZ, x).digest());
  }
  EXPECT_EQ(different.size(), 8);
}

TEST(FaultInjector, LogsWhatChangedAndNothingElse) {
  Array x = values(Site::z, DType::f32);
  FaultInjector injector({{.name = "head", .parameters = {{"head", 0}}, .hook = "z"},
                          {.name = "scale", .parameters = {{"factor", 1}}}},
                         small());
  EXPECT_FALSE(same_bits(injector(kZ, x), x));
  EXPECT_EQ(injector({Site::q, 0}, x).bytes(), x.bytes()) << "times 1 is the same handle";
  ASSERT_EQ(injector.fired(), 1);
  EXPECT_EQ(injector.log()[0].fault, "head");
  EXPECT_EQ(injector.log()[0].id, kZ);
  EXPECT_EQ(injector.log()[0].changed, 16);
  EXPECT_EQ(injector.fired_names(), std::vector<std::string>{"blocks.1.attn.hook_z"});
}

TEST(FaultInjector, FaultsOfOneTensorAddUp) {
  Array x = values(Site::z, DType::f32);
  FaultSpec spec{.name = "one_element", .parameters = {{"index", 2}, {"delta", 1}}};
  EXPECT_EQ(FaultInjector({spec, spec}, small())(kZ, x)[2], x[2] + 2);
}

TEST(FaultInjector, RefusesWhatItDoesNotKnow) {
  auto make = [](FaultSpec spec) { return [spec] { FaultInjector({spec}, small()); }; };
  EXPECT_THROW(make({.name = "swap_head"})(), std::invalid_argument);
  expect_message(make({.name = "swap_head"}),
                 {"[faults]", "\"swap_head\"", "nearest: \"swap_heads\"", "mask_group"});
  expect_message(make({.name = "row", .parameters = {{"position", 1}}}),
                 {"no parameter \"position\"", "pos, batch, garbage, delta"});
  expect_message(make({.name = "row", .parameters = {{"pos", 1.5}}}),
                 {"pos is 1.5", "whole number"});
  expect_message(make({.name = "scale", .parameters = {{"factor", std::nan("")}}}),
                 {"factor is not finite"});
  for (const char* name : {"height", "width"})
    expect_message(make({.name = "tile", .parameters = {{name, 0}}}), {name, "1 or more"});
  expect_message(make({.name = "mask_group", .parameters = {{"group", 0}}}),
                 {"group is 0", "1 or more"});
  expect_message(make({.name = "round_bits", .parameters = {{"bits", -3}}}),
                 {"bits is -3", "1 or more"});
  expect_message(make({.name = "row", .stage = -1}), {"stage -1 is negative"});
  expect_message(make({.name = "row", .hook = "attn.hook_y"}),
                 {"no hook point \"attn.hook_y\"", "\"attn.hook_q\""});
  expect_message(make({.name = "row", .hook = "blocks.x.attn.hook_z"}), {"no hook point"});
  expect_message(make({.name = "row", .hook = "blocks."}), {"no hook point"});
  expect_message(make({.name = "row", .hook = ""}), {"no hook point"});
  expect_message(make({.name = "row", .hook = "hook_embed", .layer = 0}),
                 {"no hook point \"hook_embed\" in a layer"});
  expect_message(make({.name = "row", .hook = "blocks.0.attn.hook_z", .layer = 1}),
                 {"not of layer 1"});
  expect_message(make({.name = "head", .hook = "hook_attn_out"}),
                 {"cannot occur at \"hook_attn_out\""});
  expect_message(make({.name = "mask_group", .hook = "attn.hook_pattern"}),
                 {"cannot occur", "attn.hook_attn_scores"});
  expect_message(make({.name = "nan", .hook = "hook_tokens"}), {"cannot occur"});
  EXPECT_THROW(make({.name = "row", .layer = 2})(), std::out_of_range);
  EXPECT_THROW(make({.name = "row", .layer = -3})(), std::out_of_range);
  EXPECT_THROW(make({.name = "row", .hook = "blocks.2.attn.hook_z"})(), std::out_of_range);
  expect_message(make({.name = "row", .layer = 2}), {"layer 2 out of range", "2 layers"});
}

TEST(FaultInjector, RefusesWhatTheTensorHasNot) {
  Array x = values(Site::z, DType::f32);
  auto call = [&](FaultSpec spec) { return [&, spec] { inject(spec, kZ, x); }; };
  struct Case {
    const char *fault, *parameter;
    double value;
    const char* allowed;
  };
  for (const Case& c : {Case{"row", "pos", 4, "0..3"}, Case{"row", "batch", -1, "0..1"},
                        Case{"head", "head", 3, "0..2"}, Case{"swap_heads", "b", 3, "0..2"},
                        Case{"one_element", "index", 48, "0..47"}, Case{"tile", "row", 24, "0..23"},
                        Case{"tile", "column", 2, "0..1"}, Case{"zero_from", "pos", 4, "0..3"},
                        Case{"nan", "index", 1e15, "0..47"}}) {
    FaultSpec spec{.name = c.fault, .parameters = {{c.parameter, c.value}}};
    EXPECT_THROW(call(spec)(), std::out_of_range) << c.fault;
    expect_message(call(spec),
                   {c.fault, c.parameter, "out of range", "blocks.1.attn.hook_z", c.allowed});
  }
}

TEST(FaultCatalogue, NamesEveryFaultOnceAndDocumentsItsParameters) {
  std::set<std::string_view> names;
  for (const FaultInfo& fault : fault_catalogue()) {
    EXPECT_TRUE(names.insert(fault.name).second) << fault.name;
    EXPECT_FALSE(fault.description.empty());
    EXPECT_FALSE(fault.source.empty());
    EXPECT_EQ(&fault_info(fault.name), &fault);
    for (const FaultParameter& p : fault.parameters) {
      EXPECT_FALSE(p.name.empty());
      EXPECT_FALSE(p.meaning.empty());
    }
  }
  EXPECT_EQ(names.size(), fault_catalogue().size());
}

}  // namespace
}  // namespace lenscpp
