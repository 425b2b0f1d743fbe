// Callbacks: what they may return, where they may stand, and how their stages are called.
#include "hooks/callback.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "hooks/rows.h"
#include "hooks/run_record.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

Array floats(std::vector<float> values, Shape shape) {
  return Array::of(std::span<const float>(values), std::move(shape));
}

Callback unchanged(Site site, std::int64_t layer = 0) {
  return {
      .site = site, .layer = layer, .name = "look", .call = [](auto...) { return std::nullopt; }};
}

std::string refusal(const auto& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no exception";
}

void expect_refused(Site site, const Array& before, const Array& after,
                    std::initializer_list<std::string> words) {
  std::string message = refusal([&] { check_returned(unchanged(site), before, after); });
  for (const std::string& word : words)
    EXPECT_NE(message.find(word), std::string::npos) << message << " lacks " << word;
}

TEST(CheckReturned, TakesNumbersOfTheSameShapeAndDtype) {
  Array before = floats({1, 2, 3, 4}, {1, 2, 2});
  EXPECT_NO_THROW(
      check_returned(unchanged(Site::z), before, floats({0, -0.0f, 9, 1e30f}, {1, 2, 2})));
}

TEST(CheckReturned, RefusesAnotherShapeOrDtypeNamingHookAndPoint) {
  Array before = floats({1, 2, 3, 4}, {1, 2, 2});
  expect_refused(
      Site::embed, before, before.reshaped({1, 4, 1}),
      {"[hook]", "look at hook_embed", "float32 [1, 4, 1]", "allowed: float32 [1, 2, 2]"});
  expect_refused(Site::embed, before, before.to(DType::f64),
                 {"float64 [1, 2, 2]", "allowed: float32 [1, 2, 2]"});
}

TEST(CheckReturned, RefusesWhatIsNotFiniteUnlessItWasThereBefore) {
  Array before = floats({1, kInf, 3, 4}, {1, 2, 2});
  for (float bad : {std::nanf(""), kInf, -kInf})
    expect_refused(Site::z, before, floats({1, kInf, 3, bad}, {1, 2, 2}),
                   {"at element 3", "finite"});
  EXPECT_NO_THROW(check_returned(unchanged(Site::z), before, floats({9, kInf, 3, 4}, {1, 2, 2})));
}

TEST(CheckReturned, LetsMinusInfinityHideKeysButLeavesEachQueryOne) {
  Array before = floats({1, -kInf, 3, 4}, {1, 1, 2, 2});
  auto after = [](float a, float b, float c, float d) {
    return floats({a, b, c, d}, {1, 1, 2, 2});
  };
  EXPECT_NO_THROW(check_returned(unchanged(Site::attn_scores), before, after(2, -kInf, -kInf, 1)));
  expect_refused(Site::attn_scores, before, after(1, -kInf, -kInf, -kInf),
                 {"every key of row 1", "at least one finite score"});
  expect_refused(Site::attn_scores, before, after(1, -kInf, kInf, 1), {"at element 2"});
  expect_refused(Site::pattern, before, after(1, -kInf, -kInf, 1), {"at element 2"});
}

TEST(Identical, ComparesBitsNotNumbers) {
  Array zero = floats({0, 1}, {2}), minus = floats({-0.0f, 1}, {2});
  EXPECT_TRUE(identical(zero, floats({0, 1}, {2})));
  EXPECT_FALSE(identical(zero, minus));
  EXPECT_FALSE(identical(zero, zero.reshaped({1, 2})));
  EXPECT_TRUE(identical(floats({std::nanf("")}, {1}), floats({std::nanf("")}, {1})));
}

class RequestWithCallbacks : public testing::Test {
 protected:
  Config config = read_config(golden::folder("three_layers"));
  Request request{.rows = Rows::from_tokens({1, 2, 3, 4}, 1, config)};
};

TEST_F(RequestWithCallbacks, ComputesOnDemandSitesThatOneAsksFor) {
  EXPECT_FALSE(request.computes(Site::result, 1));
  EXPECT_FALSE(request.splits_qkv(1));
  request.callbacks = {unchanged(Site::result, 1), unchanged(Site::q_input, 1)};
  request.validate(config);
  EXPECT_TRUE(request.computes(Site::result, 1));
  EXPECT_FALSE(request.computes(Site::result, 0));
  EXPECT_TRUE(request.splits_qkv(1));
}

TEST_F(RequestWithCallbacks, NamesStagesByEditsFirstThenHooks) {
  request.plan = Plan({{.kind = EditKind::zero, .site = Site::z, .layer = 1}});
  request.callbacks = {unchanged(Site::z, 1), unchanged(Site::z, 2), unchanged(Site::z, 1)};
  request.callbacks[2].name = "second";
  EXPECT_EQ(request.stages(Site::z, 1), 3);
  std::vector<std::string> names;
  for (std::int64_t stage : {0, 1, 2, 3}) names.push_back(request.name_of({Site::z, 1, stage}));
  EXPECT_EQ(names,
            (std::vector<std::string>{"blocks.1.attn.hook_z", "blocks.1.attn.hook_z (edit 1)",
                                      "blocks.1.attn.hook_z (hook 1: look)",
                                      "blocks.1.attn.hook_z (hook 2: second)"}));
}

TEST_F(RequestWithCallbacks, RefusesCallbacksThatWouldNeverBeCalled) {
  auto refused = [&](const Callback& callback, const std::string& words) {
    request.callbacks = {callback};
    std::string message = refusal([&] { request.validate(config); });
    EXPECT_NE(message.find(words), std::string::npos) << message;
    EXPECT_NE(message.find("look"), std::string::npos) << message;
  };
  refused(unchanged(Site::tokens), "can be changed");
  refused(unchanged(Site::ln1_out, 1), "can be changed");
  refused(unchanged(Site::z, 3), "layer out of range");
  refused(unchanged(Site::z, -1), "layer out of range");
  refused({.site = Site::z, .layer = 0, .name = "look", .call = {}}, "needed: a function");
  request.rows.end_layer = 2;
  request.rows.unembeds = false;
  refused(unchanged(Site::z, 2), "does not compute");
  refused(unchanged(Site::unembed_out), "does not compute");
  request.on_demand = {};
  request.plan = Plan({{.kind = EditKind::zero, .site = Site::q_input, .layer = 1}});
  refused(unchanged(Site::ln1_scale, 1), "which nothing reads");
}

TEST(RunRecord, NamesEachCallOfAHook) {
  RunRecord record;
  record.hooks = {
      {.name = "hook_embed", .function = "steer", .before = "aa", .after = "bb", .changed = true}};
  EXPECT_EQ(
      to_json(record)["hooks"][0].dump(),
      R"({"after":"bb","before":"aa","changed":true,"function":"steer","name":"hook_embed"})");
}

}  // namespace
}  // namespace lenscpp
