// Counting runs, and saying what they came to.
#include "verify/device/drill.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace lenscpp {
namespace {

constexpr TensorId kZ{Site::z, 1}, kOut{Site::attn_out, 1};

DrillRun run(const std::string& fault, Harm harm, bool refused, const TensorId& named = kZ) {
  DrillRun r{.fault = fault, .place = kZ, .batch = 1, .pos = 5, .changed = 3, .refused = refused};
  r.judgement.harm = harm;
  if (harm != Harm::harmless) r.judgement.first = kZ;
  if (refused) r.named = to_string(named);
  return r;
}

DrillReport report(std::vector<DrillRun> runs) {
  return {.model = "m", .device = "cpu", .runs = std::move(runs)};
}

TEST(DrillReport, CountsByFault) {
  DrillRun silent = run("row", Harm::harmless, false);
  silent.changed = 0;
  DrillReport r = report({run("row", Harm::harmful, true), run("row", Harm::harmful, true, kOut),
                          run("row", Harm::harmful, false), run("row", Harm::between, false),
                          run("row", Harm::between, true), run("row", Harm::harmless, false),
                          silent, run("nan", Harm::harmful, true)});
  ASSERT_EQ(r.rows().size(), 2u);
  DrillRow row = r.rows()[0];
  EXPECT_EQ(row.fault, "row");
  EXPECT_EQ(row.runs, 7);
  EXPECT_EQ(row.fired, 6);
  EXPECT_EQ(row.harmful, 3);
  EXPECT_EQ(row.between, 2);
  EXPECT_EQ(row.harmless, 1);
  EXPECT_EQ(row.refused, 3);
  EXPECT_EQ(row.harmful_refused, 2);
  EXPECT_EQ(row.named, 2);
  EXPECT_EQ(r.total().runs, 8);
  EXPECT_EQ(r.total().harmful, 4);
  EXPECT_EQ(r.missed().size(), 1u);
  EXPECT_NE(r.table().find("HARMFUL AND NOT REFUSED"), std::string::npos);
  EXPECT_EQ(report({run("row", Harm::harmful, true)}).table().find("NOT REFUSED"),
            std::string::npos);
}

TEST(DrillReport, ARunThatTheDeviceEndedIsNeitherHarmfulNorRefused) {
  DrillRun threw = run("C1", Harm::harmless, false);
  threw.error = "index out of range";
  DrillRow all = report({threw, run("C1", Harm::harmful, true)}).total();
  EXPECT_EQ(all.fired, 2);
  EXPECT_EQ(all.threw, 1);
  EXPECT_EQ(all.harmful + all.between + all.harmless, 1);
  EXPECT_EQ(all.refused, 1);
  EXPECT_NE(report({threw}).summary().find("1 ended with an error"), std::string::npos);
  nlohmann::json json = to_json(threw);
  EXPECT_EQ(json["harm"], "ended");
  EXPECT_TRUE(json["times"].is_null() && json["relative"].is_null() && json["of_bound"].is_null());
  EXPECT_TRUE(std::isnan(report({threw}).map().refused[0]));
  threw.changed = 0;
  EXPECT_EQ(report({threw}).total().threw, 1) << "before any fault was logged";
  EXPECT_EQ(report({threw}).total().fired, 0);
}

TEST(DrillReport, OneMissOfAThousandIsNotAHundredPercent) {
  std::vector<DrillRun> runs(2999, run("row", Harm::harmful, true));
  EXPECT_NE(report(runs).summary().find("100 % of the harmful"), std::string::npos);
  runs.push_back(run("row", Harm::harmful, false));
  EXPECT_NE(report(runs).summary().find("99.9 % of the harmful"), std::string::npos);
}

TEST(DrillReport, WhatWasRefusedWithoutAnyDifferenceIsAFalseAlarm) {
  EXPECT_EQ(report({run("row", Harm::harmless, true), run("row", Harm::harmless, false),
                    run("row", Harm::between, true)})
                .false_alarms(),
            1);
  EXPECT_NE(report({run("row", Harm::harmless, true)}).summary().find("1 REFUSED WITHOUT ANY"),
            std::string::npos);
  EXPECT_EQ(report({run("row", Harm::harmless, false)}).summary().find("REFUSED WITHOUT"),
            std::string::npos);
}

TEST(DrillReport, WithoutHarmNothingWasShown) {
  EXPECT_NE(report({run("row", Harm::between, true)}).summary().find("nothing was shown"),
            std::string::npos);
  EXPECT_EQ(report({run("row", Harm::harmful, true)}).summary().find("nothing was shown"),
            std::string::npos);
}

TEST(DrillReport, AChecksumOfATensorIsNoShareOfItsBound) {
  DrillRun exact = run("row", Harm::between, false), projected = exact;
  exact.of_bound = projected.of_bound = 0.25;
  projected.projected = true;
  EXPECT_NE(report({exact}).table().find("0.25 of the bound"), std::string::npos);
  EXPECT_EQ(report({projected}).table().find("of the bound"), std::string::npos);
  EXPECT_NE(report({projected}).table().find("not compared exactly (checksum)"), std::string::npos);
  EXPECT_TRUE(to_json(projected)["of_bound"].is_null());
}

TEST(DrillReport, UnseenRunsComeWithTheLargestDifferenceFirst) {
  DrillRun small = run("a", Harm::between, false), large = run("b", Harm::between, false),
           seen = run("c", Harm::between, true);
  small.judgement.times = 1, large.judgement.times = 3, seen.judgement.times = 9;
  DrillReport r = report({small, seen, run("d", Harm::harmless, false), large});
  ASSERT_EQ(r.unseen().size(), 2u);
  EXPECT_EQ(r.unseen()[0]->fault, "b");
  EXPECT_TRUE(r.missed().empty());
}

TEST(DrillReport, TheMapHoldsSharesOfTheHarmfulAndNothingWhereNoneWas) {
  DrillRun elsewhere = run("row", Harm::harmful, true);
  elsewhere.place = kOut;
  DrillRun silent = run("nan", Harm::harmless, false);
  silent.changed = 0;
  DrillMap map = report({run("row", Harm::harmful, true), run("row", Harm::harmful, false),
                         run("row", Harm::between, false), run("row", Harm::harmless, false),
                         elsewhere, silent, run("nan", Harm::harmless, false)})
                     .map();
  EXPECT_EQ(map.faults, (std::vector<std::string>{"row", "nan"}));
  EXPECT_EQ(map.sites, (std::vector<std::string>{"attn.hook_z", "hook_attn_out"}));
  EXPECT_EQ(map.refused[0], 0.5);
  EXPECT_EQ(map.refused[1], 1);
  EXPECT_TRUE(std::isnan(map.refused[2]) && std::isnan(map.refused[3]));
}

TEST(DrillReport, TheHintMostOftenGivenStandsForItsRow) {
  std::vector<DrillRun> runs(3, run("row", Harm::harmful, true));
  runs[0].hint = "unrelated values", runs[1].hint = "zeros: pos 3", runs[2].hint = "zeros: pos 14";
  EXPECT_EQ(report(runs).rows()[0].hint, "zeros: pos #");
}

TEST(DrillReport, TheDocumentHoldsEveryRun) {
  DrillRun r = run("row", Harm::harmful, true, kOut);
  r.judgement.times = INFINITY;
  DrillReport whole = report({r});
  whole.never_fired = {{"S1", "needs a non-contiguous weight"}};
  whole.settings = {{.device = "cpu", .batch = 1, .pos = 5, .spread = 1e-6, .where = "hook_embed"}};
  nlohmann::json json = to_json(whole);
  EXPECT_EQ(json["runs"].size(), 1u);
  EXPECT_EQ(json["runs"][0]["times"], "inf");
  EXPECT_EQ(json["runs"][0]["place"], "blocks.1.attn.hook_z");
  EXPECT_EQ(json["runs"][0]["named_right"], false);
  EXPECT_EQ(json["rows"][0]["harmful"], 1);
  EXPECT_EQ(json["never_fired"][0]["fault"], "S1");
  EXPECT_EQ(json["missed"], 0);
  EXPECT_EQ(json["settings"][0]["spread"], 1e-6);
  EXPECT_EQ(json["settings"][0]["dtype"], "float32");
  EXPECT_NE(whole.table().find("S1 ignores_weight_strides: needs a non-contiguous weight"),
            std::string::npos);
}

}  // namespace
}  // namespace lenscpp
