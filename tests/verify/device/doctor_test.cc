// The recommendation, case by case; phases as JSON; processes that died.
#include "verify/device/doctor.h"

#include <gtest/gtest.h>

#include <csignal>
#include <limits>

namespace lenscpp {
namespace {

using nlohmann::json;

// Every phase passed; `changed` replace those of their names.
std::vector<PhaseResult> results(const std::vector<PhaseResult>& changed = {}) {
  std::vector<PhaseResult> all;
  for (const PhaseInfo& phase : doctor_phases()) {
    all.push_back({.name = std::string(phase.name), .status = PhaseStatus::pass, .summary = "ok"});
    for (const PhaseResult& other : changed)
      if (other.name == phase.name) all.back() = other;
  }
  return all;
}
PhaseResult failed(const std::string& name, json measured = json::object()) {
  return {.name = name,
          .status = PhaseStatus::fail,
          .summary = "it went wrong",
          .measured = std::move(measured)};
}
PhaseResult native(double share, std::vector<std::string> fallen = {}) {
  return {.name = "operators",
          .status = PhaseStatus::warn,
          .summary = "some fall back",
          .measured = {{"native_share", share}, {"fallback", std::move(fallen)}}};
}
Advice advice(const std::vector<PhaseResult>& changed) {
  return recommend("cuda", results(changed)).advice;
}

TEST(Recommend, UsesADeviceOnWhichEverythingPasses) {
  Recommendation r = recommend("cuda", results());
  EXPECT_EQ(r.advice, Advice::use);
  EXPECT_EQ(r.settings, std::vector<std::string>{});
  EXPECT_EQ(r.because, std::vector<std::string>{"every run was verified"});
}

TEST(Recommend, TheCpuWhereAnythingThatAForwardPassNeedsFails) {
  for (const char* name : {"availability", "dependencies", "operators", "dtypes", "accuracy",
                           "copies", "plan", "load", "transfer", "forward", "ioi"}) {
    Recommendation r = recommend("cuda", results({failed(name)}));
    EXPECT_EQ(r.advice, Advice::use_cpu) << name;
    ASSERT_FALSE(r.because.empty());
    EXPECT_EQ(r.because[0], std::string(name) + ": it went wrong");
  }
}

TEST(Recommend, WhatIsNotTheDevicesFaultIsARemark) {
  for (const char* name : {"tokenizer", "swap", "speed"}) {
    Recommendation r = recommend("cuda", results({failed(name)}));
    EXPECT_EQ(r.advice, Advice::use) << name;
    EXPECT_EQ(r.because[0], std::string(name) + ": it went wrong");
  }
}

TEST(Recommend, WrongGradientsForbidGradientsAlone) {
  Recommendation r = recommend("cuda", results({failed("backward")}));
  EXPECT_EQ(r.advice, Advice::use_with_settings);
  EXPECT_EQ(r.settings, std::vector<std::string>{"no gradients on this device"});
}

TEST(Recommend, AProcessThatDiedIsNeverForgiven) {
  for (const PhaseInfo& phase : doctor_phases())
    EXPECT_EQ(advice({failed(std::string(phase.name), {{"died", "aborted"}})}), Advice::use_cpu)
        << phase.name;
}

TEST(Recommend, CountsNativeOperators) {
  EXPECT_EQ(advice({native(1)}), Advice::use);
  EXPECT_EQ(advice({native(0.95, {"gelu"})}), Advice::use);
  EXPECT_EQ(advice({native(0.9, {"gelu"})}), Advice::use);
  EXPECT_EQ(advice({native(0.89, {"gelu"})}), Advice::use_with_settings);
  EXPECT_EQ(advice({native(0.7, {"gelu"})}), Advice::use_with_settings);
  EXPECT_EQ(advice({native(0.69, {"gelu"})}), Advice::use_cpu);
  EXPECT_EQ(advice({native(0)}), Advice::use_cpu);
  EXPECT_EQ(advice({native(std::numeric_limits<double>::quiet_NaN())}), Advice::use_cpu);
  std::string words = recommend("cuda", results({native(0.8, {"gelu", "bmm"})})).in_words();
  EXPECT_NE(words.find("80.0 % of the operators are native"), words.npos) << words;
  EXPECT_NE(words.find("gelu, bmm"), words.npos) << words;
}

TEST(Recommend, PassesOnTheSettingsThatPhasesFoundNeeded) {
  PhaseResult forward{.name = "forward",
                      .status = PhaseStatus::warn,
                      .summary = "verified as declared",
                      .measured = {{"settings", {"matmul_precision=\"tf32\""}}}};
  Recommendation r = recommend("cuda", results({forward}));
  EXPECT_EQ(r.advice, Advice::use_with_settings);
  EXPECT_EQ(r.settings, std::vector<std::string>{"matmul_precision=\"tf32\""});
  r = recommend("cuda", results({forward, failed("copies")}));
  EXPECT_EQ(r.advice, Advice::use_cpu);
  EXPECT_EQ(r.settings, std::vector<std::string>{}) << "settings of a device not to be used";
}

TEST(Recommend, NothingButTheCpuWithoutAVerifiedForwardPass) {
  EXPECT_EQ(recommend("cuda", {}).advice, Advice::use_cpu);
  PhaseResult skipped{.name = "forward", .status = PhaseStatus::skipped, .summary = "-"};
  EXPECT_EQ(advice({skipped}), Advice::use_cpu);
}

TEST(Recommend, SaysHowFastADeviceIs) {
  PhaseResult speed{.name = "speed",
                    .status = PhaseStatus::pass,
                    .summary = "fast",
                    .measured = {{"times_as_fast", 12.5}}};
  EXPECT_EQ(recommend("cuda", results({speed})).because,
            std::vector<std::string>{"every run was verified; 12.5 times as fast as the CPU"});
  EXPECT_EQ(recommend("cpu", results({speed})).because,
            std::vector<std::string>{"every run was verified"});
  speed.measured["times_as_fast"] = 0.05;
  EXPECT_EQ(recommend("cuda", results({speed})).because,
            std::vector<std::string>{"every run was verified; 20 times slower than the CPU"});
}

// There is no other CPU to use instead.
TEST(Recommend, DoesNotAnswerARefusedCpuWithTheCpu) {
  for (const auto& changed : {std::vector{failed("forward")}, std::vector{native(0.5)}}) {
    Recommendation r = recommend("cpu", results(changed));
    EXPECT_EQ(r.advice, Advice::not_this_cpu);
    EXPECT_FALSE(r.usable());
    EXPECT_TRUE(r.in_words().starts_with("do not use this machine's CPU as it is\n"));
    EXPECT_EQ(to_json(r)["advice"], "do not use this machine's CPU as it is");
  }
  EXPECT_EQ(recommend("cpu", {}).advice, Advice::not_this_cpu);
  EXPECT_FALSE(recommend("cuda", {}).usable());
  EXPECT_TRUE(recommend("cpu", results()).usable());
}

// Lengths are tried in growing order, and short ones again: a second run of 5 tokens may fail.
TEST(LengthSetting, IsNoneWhereALengthFailsThatWasVerifiedBefore) {
  EXPECT_EQ(length_setting(33, 64), "at most 33 tokens a prompt");
  EXPECT_EQ(length_setting(1, 2), "at most 1 token a prompt");
  EXPECT_EQ(length_setting(256, 5), std::nullopt);
  EXPECT_EQ(length_setting(256, 256), std::nullopt);
  EXPECT_EQ(length_setting(0, 1), std::nullopt);
}

TEST(ReasonToSkip, IsAPhaseThatDidNotSucceed) {
  std::vector<PhaseResult> before{{.name = "availability", .status = PhaseStatus::warn}};
  EXPECT_EQ(reason_to_skip(phase_info("availability"), {}), std::nullopt);
  EXPECT_EQ(reason_to_skip(phase_info("load"), before), std::nullopt);
  EXPECT_EQ(reason_to_skip(phase_info("forward"), before), "load did not succeed");
  before.push_back(failed("load"));
  EXPECT_EQ(reason_to_skip(phase_info("forward"), before), "load did not succeed");
  before[0].status = PhaseStatus::fail;
  EXPECT_EQ(reason_to_skip(phase_info("load"), before), "availability did not succeed");
}

TEST(DoctorPhases, NeedWhatRunsBeforeThem) {
  std::vector<std::string_view> seen;
  for (const PhaseInfo& phase : doctor_phases()) {
    for (std::string_view need : phase.needs)
      EXPECT_NE(std::ranges::find(seen, need), seen.end()) << phase.name << " needs " << need;
    seen.push_back(phase.name);
  }
  EXPECT_GE(seen.size(), 14u);
  EXPECT_THROW(phase_info("nothing"), std::invalid_argument);
}

TEST(Died, SaysHow) {
  PhaseResult aborted = died("copies", {.signal = SIGABRT, .last_line = "total bytes > 2**32"});
  EXPECT_EQ(aborted.status, PhaseStatus::fail);
  EXPECT_EQ(aborted.summary, "aborted (SIGABRT): total bytes > 2**32");
  EXPECT_EQ(aborted.measured["died"], "aborted");
  PhaseResult hung = died("copies", {.timed_out = true, .limit_seconds = 20, .signal = SIGKILL});
  EXPECT_EQ(hung.summary, "hung: stopped after 20 s");
  EXPECT_EQ(hung.measured["died"], "hung");
  EXPECT_EQ(died("copies", {.status = 7}).summary, "ended with 7 and left no result");
  EXPECT_EQ(died("copies", {.signal = 63}).summary, "aborted (signal 63)");
}

TEST(PhaseResult, SurvivesJson) {
  PhaseResult r{.name = "copies",
                .status = PhaseStatus::warn,
                .summary = "s",
                .details = {"a", "b"},
                .measured = {{"x", 1}},
                .seconds = 2.5};
  EXPECT_EQ(to_json(phase_result_from_json(to_json(r))), to_json(r));
  json broken = to_json(r);
  broken["status"] = "fine";
  EXPECT_THROW(phase_result_from_json(broken), std::invalid_argument);
  broken.erase("status");
  EXPECT_THROW(phase_result_from_json(broken), json::exception);
}

}  // namespace
}  // namespace lenscpp
