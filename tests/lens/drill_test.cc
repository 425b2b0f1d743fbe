// A drill of small models: what it counts, and that it is the seed's.
#include "lens/drill.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "tests/golden_cases.h"
#include "verify/device/simulated.h"

namespace lenscpp {
namespace {

HookedTransformer model(const std::string& name = "three_layers") {
  return HookedTransformer::from_pretrained(golden::folder(name));
}

class Drill : public testing::Test {
 protected:
  // One thread: hundreds of tiny runs spend all their time waking others.
  static void SetUpTestSuite() { at::set_num_threads(1); }
  static void TearDownTestSuite() { at::set_num_threads(threads); }
  inline static int threads = at::get_num_threads();
};

// One dtype and shape, few honest runs: a tenth of a second a fault.
DrillOptions small(std::vector<FaultSpec> faults = {}) {
  return {.faults = std::move(faults),
          .dtypes = {DType::f32},
          .batches = {1},
          .lengths = {5},
          .honest_runs = 4};
}

TEST_F(Drill, RefusesEveryHarmfulFaultAndNamesTheFirstWrongTensor) {
  DrillOptions o = small();
  o.dtypes = {DType::f32, DType::bf16, DType::f16};
  o.batches = {1, 2};
  o.lengths = {};
  o.sample = 18;  // one in each dtype and shape
  DrillReport r = drill(model(), o);
  DrillRow all = r.total();
  EXPECT_GT(all.fired, 450);
  EXPECT_GT(all.harmful, 400);
  // What can be missed is one element within its bound in a narrow dtype: of a thousand at most
  // two.
  EXPECT_LE(1000 * std::ssize(r.missed()), 2 * all.harmful) << r.table();
  for (const DrillRun* missed : r.missed()) {
    EXPECT_NE(missed->dtype, DType::f32) << missed->fault;
    EXPECT_EQ(missed->changed, 1) << missed->fault;
    EXPECT_LE(missed->of_bound, 1) << missed->fault;
  }
  EXPECT_GE(static_cast<double>(all.named), 0.98 * static_cast<double>(all.refused)) << r.table();
  EXPECT_EQ(r.false_alarms(), 0);
  EXPECT_EQ(all.fired, all.harmful + all.between + all.harmless + all.threw);
  std::map<std::string, int> runs;
  for (const DrillRow& row : r.rows()) {
    EXPECT_TRUE(row.in_device || row.runs == 18) << row.fault << ": " << row.runs;
    runs[row.fault] = static_cast<int>(row.runs);
  }
  for (const FaultInfo& row : fault_catalogue()) EXPECT_TRUE(runs.contains(std::string(row.name)));
  std::map<std::string, std::int64_t> fired;
  for (const DrillRow& row : r.rows()) fired[row.fault] = row.fired;
  for (const auto& [fault, why] : r.never_fired) {
    EXPECT_FALSE(why.empty()) << fault;
    EXPECT_EQ(fired[fault], 0) << fault;
  }
  for (const char* fault : {"S4:rows=1", "Z10:bytes=64", "M3:factor=2", "P1:variance=1000",
                            "P3:beyond=1", "Z16", "M11", "P10", "P10:factor=2"})
    EXPECT_GT(fired[fault], 0) << fault;
  EXPECT_EQ(r.settings.size(), 36u) << "at the tap and in the device";
  for (const DrillSetting& setting : r.settings) {
    EXPECT_GT(setting.spread, 0) << name_of(setting.dtype);
    EXPECT_LT(setting.spread, setting.dtype == DType::f32 ? 1e-5 : 0.2) << setting.where;
  }
}

// Of the first honest run one activation is what an earlier tensor left: it would allow as much.
TEST_F(Drill, ADeviceThatGetsAnHonestRunWrongDefinesNoHarm) {
  HookedTransformer there = model().moved("simulated", DType::f32);
  SimulatedLimits before = *simulated_device().limits();
  auto with = [&](double call) {
    SimulatedLimits limits = before;
    limits.faults = {{.name = "S3", .parameters = {{"always", 1}, {"call", call}}}};
    simulated_device().set_limits(limits);
    DrillOptions o = small({{.name = "nan"}});
    o.sites = {"hook_embed"};
    EXPECT_THROW(drill(there, o), VerificationFailed) << call;
    simulated_device().set_limits(before);
  };
  with(0);                                             // of the clean run
  with(static_cast<double>(there.config().n_layers));  // of the first in another order
}

TEST_F(Drill, WhatAChecksumDidNotCompareIsNotCalledAShareOfTheBound) {
  DrillOptions o = small({{.name = "scale", .parameters = {{"factor", 1 + 0x1p-23}}}});
  o.sites = {"mlp.hook_pre"};  // of few outputs, products are compared exactly
  o.verify = VerifyMode::checksum;
  DrillReport r = drill(model(), o);
  ASSERT_FALSE(r.unseen().empty());
  EXPECT_TRUE(std::ranges::any_of(r.unseen(), [](const DrillRun* run) { return run->projected; }));
  EXPECT_NE(r.table().find("not compared exactly (checksum)"), std::string::npos);
}

// As wide as the shipped model, so that products are projected.
TEST_F(Drill, MissesNoHarmfulFaultByChecksums) {
  DrillOptions o = small();
  o.dtypes = {DType::f32, DType::bf16};
  o.lengths = {15};
  o.sample = 4;
  o.verify = VerifyMode::checksum;
  DrillReport r =
      drill(HookedTransformer::from_pretrained(std::filesystem::path(LENSCPP_SOURCE_DIR) /
                                               "python/lenscpp/models/tiny-ioi"),
            o);
  EXPECT_GT(r.total().harmful, 100);
  EXPECT_EQ(r.missed().size(), 0u) << r.table();
  EXPECT_EQ(r.false_alarms(), 0);
}

TEST_F(Drill, GoesThroughEveryTensorWhereAFaultApplies) {
  DrillReport r = drill(model(), small({{.name = "nan"}, {.name = "mask_group"}}));
  std::set<std::string> places;
  for (const DrillRun& run : r.runs) places.insert(to_string(run.place));
  EXPECT_EQ(r.rows()[1].runs, model().config().n_layers) << "attention scores alone have a mask";
  EXPECT_TRUE(places.contains("hook_embed") && places.contains("unembed.hook_out") &&
              places.contains("blocks.2.hook_mlp_out"));
  EXPECT_EQ(static_cast<std::size_t>(r.rows()[0].runs), places.size());
  EXPECT_EQ(r.missed().size(), 0u);
}

TEST_F(Drill, WhatIsBelowEveryBoundIsListedAndNotHarmful) {
  DrillReport r =
      drill(model(), small({{.name = "scale", .parameters = {{"factor", 1 + 0x1p-23}}}}));
  EXPECT_GT(r.total().between, 10) << r.table();
  EXPECT_EQ(r.missed().size(), 0u) << r.table();
  ASSERT_GT(r.unseen().size(), 5u);
  for (const DrillRun* run : r.unseen()) {
    EXPECT_EQ(run->judgement.harm, Harm::between);
    EXPECT_GT(run->of_bound, 0);
    EXPECT_LE(run->of_bound, 1);
    EXPECT_LT(run->judgement.relative, 1e-6);
  }
}

TEST_F(Drill, AFaultThatChangesNothingHasNotFiredAndIsHarmless) {
  DrillReport r = drill(model(), small({{.name = "scale", .parameters = {{"factor", 1}}}}));
  EXPECT_GT(r.total().runs, 20);
  EXPECT_EQ(r.total().fired, 0);
  for (const DrillRun& run : r.runs) {
    EXPECT_EQ(run.judgement.harm, Harm::harmless);
    EXPECT_FALSE(run.refused);
  }
  ASSERT_EQ(r.never_fired.size(), 1u);
  EXPECT_EQ(r.never_fired[0].first, "scale:factor=1");
  EXPECT_NE(r.never_fired[0].second.find("changed no bit in"), std::string::npos);
}

TEST_F(Drill, TheSeedDecides) {
  DrillOptions o = small();
  o.sample = 2;
  auto without_time = [](DrillReport r) {
    r.seconds = 0;
    return to_json(r).dump();
  };
  std::string first = without_time(drill(model(), o));
  EXPECT_EQ(without_time(drill(model(), o)), first);
  o.seed = 1;
  EXPECT_NE(without_time(drill(model(), o)), first);
}

TEST_F(Drill, RunsThePartThatIsAskedFor) {
  DrillOptions o = small({{.name = "row"}});
  o.sites = {"z", "hook_attn_out", "attn.hook_result"};
  o.layers = {-1};
  DrillReport r = drill(model(), o);
  std::vector<std::string> places;
  for (const DrillRun& run : r.runs) places.push_back(to_string(run.place));
  EXPECT_EQ(places, (std::vector<std::string>{"blocks.2.attn.hook_z", "blocks.2.attn.hook_result",
                                              "blocks.2.hook_attn_out"}));
  EXPECT_EQ(r.total().harmful_refused, 3);
}

TEST_F(Drill, WhatIsDrawnForAFaultDependsOnNoOther) {
  DrillOptions o = small({{.name = "row"}}), more = small({{.name = "nan"}, {.name = "row"}});
  o.sample = more.sample = 4;
  auto places = [](const DrillReport& r) {
    std::vector<std::string> places;
    for (const DrillRun& run : r.runs)
      if (run.fault == "row") places.push_back(to_string(run.place));
    return places;
  };
  EXPECT_EQ(places(drill(model(), o)), places(drill(model(), more)));
  EXPECT_EQ(places(drill(model(), o)).size(), 4u);
}

TEST_F(Drill, FaultsInsideTheDeviceRunWhereTheyFire) {
  DrillReport r = drill(model(), small({{.name = "C1"},
                                        {.name = "S1", .parameters = {{"transposed", 1}}},
                                        {.name = "P5"},
                                        {.name = "P5", .parameters = {{"always", 1}}}}));
  ASSERT_EQ(r.rows().size(), 2u) << r.table();
  EXPECT_EQ(r.rows()[0].fault, "S1:transposed=1");
  EXPECT_EQ(r.rows()[1].fault, "P5") << "it fires everywhere anyway";
  for (const DrillRun& run : r.runs) {
    EXPECT_TRUE(run.in_device && run.fired());
    EXPECT_FALSE(run.fired_at.empty());
    EXPECT_TRUE(run.refused || !run.harmful()) << r.table();
  }
  ASSERT_EQ(r.never_fired.size(), 2u) << r.table();
  EXPECT_EQ(r.never_fired[0].first, "C1");
  EXPECT_NE(r.never_fired[0].second.find("does not wait"), std::string::npos);
  EXPECT_EQ(r.never_fired[1].first, "P5:always=1");
  EXPECT_NE(r.never_fired[1].second.find("same places as without always"), std::string::npos);
}

TEST_F(Drill, TellsItsProgress) {
  DrillOptions o = small({{.name = "nan"}});
  o.batches = {1, 2};
  o.lengths = {1, 5};
  std::vector<std::int64_t> done;
  std::int64_t all = 0;
  o.progress = [&](std::int64_t n, std::int64_t of) {
    done.push_back(n), all = of;
    EXPECT_TRUE(n <= of || of == 0);
  };
  DrillReport r = drill(model(), o);
  EXPECT_EQ(std::set(done.begin(), done.end()).size(),
            static_cast<std::size_t>(r.total().runs) + 1);
  EXPECT_EQ(std::ranges::count(done, 0), 4 + 1) << "honest runs, and where the fault can be";
  EXPECT_EQ(done.back(), r.total().runs);
  EXPECT_EQ(done.back(), all);
  EXPECT_TRUE(std::ranges::is_sorted(done)) << "it never goes back";
  o.progress = [](std::int64_t n, std::int64_t) {
    if (n > 0) throw std::runtime_error("stop");
  };
  EXPECT_THROW(drill(model(), o), std::runtime_error);
}

TEST_F(Drill, RefusesWhatNoRunCanHave) {
  HookedTransformer m = model();
  auto with = [&](auto change) {
    DrillOptions o = small({{.name = "nan"}});
    change(o);
    return drill(m, o);
  };
  EXPECT_THROW(with([](auto& o) { o.faults = {{.name = "nana"}}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.faults[0].hook = "z"; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.sites = {"hook_zz"}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.layers = {3}; }), std::out_of_range);
  EXPECT_THROW(with([](auto& o) { o.layers = {-4}; }), std::out_of_range);
  EXPECT_THROW(with([](auto& o) { o.lengths = {0}; }), std::invalid_argument);
  EXPECT_THROW(with([&](auto& o) { o.lengths = {m.config().n_ctx + 1}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.batches = {0}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.dtypes = {DType::i64}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.dtypes = {}; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.sample = 0; }), std::invalid_argument);
  EXPECT_THROW(with([](auto& o) { o.honest_runs = 0; }), std::invalid_argument);
}

TEST(DrillFaults, HoldTheWholeTable) {
  std::set<std::string> names;
  for (const FaultSpec& fault : drill_faults()) names.insert(fault.name);
  for (const FaultInfo& row : fault_catalogue()) EXPECT_TRUE(names.contains(std::string(row.name)));
}

TEST(DrillFaults, AreWrittenAsInjectTakesThem) {
  EXPECT_EQ(fault_in_words({.name = "nan"}), "nan");
  EXPECT_EQ(fault_in_words({.name = "scale", .parameters = {{"factor", 1.000001}}}),
            "scale:factor=1.000001");
  EXPECT_EQ(fault_in_words({.name = "tile", .parameters = {{"width", 2}, {"height", 3}}}),
            "tile:height=3,width=2");
}

}  // namespace
}  // namespace lenscpp
