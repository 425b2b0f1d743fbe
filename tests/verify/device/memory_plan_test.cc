// Peaks by hand, and what the system says there is. Peaks beside real ones:
// tests/python/test_preflight.py.
#include "verify/device/memory_plan.h"

#include <gtest/gtest.h>

#include <fstream>

#include "tests/golden_cases.h"
#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {
namespace {

class MemoryPlanTest : public testing::Test {
 protected:
  Weights weights = load_weights(golden::folder("three_layers"), DType::f32);
  const Config& c = weights.config;

  static std::int64_t item(const MemoryPlan& plan, std::string_view what) {
    for (const auto& i : plan.items)
      if (i.what == what) return i.host;
    return -1;
  }
  Request run_of(std::int64_t batch, std::int64_t pos) const {
    return {
        .rows = {
            .batch = batch, .pos = pos, .tokens = {}, .positions = {}, .end_layer = c.n_layers}};
  }
};

TEST_F(MemoryPlanTest, ALoadWithoutProcessingNeedsNoCopyOfWhatIsMapped) {
  Config stored = c;
  stored.stored_dtype = DType::f32;
  MemoryPlan plan =
      plan_load(stored, {.processing = Processing::none(), .dtype = DType::f32, .on_host = true});
  EXPECT_EQ(plan.host(), c.d_vocab * 4) << "b_U, which no file holds";
  EXPECT_EQ(plan.device(), 0);
  EXPECT_EQ(plan.mapped, static_cast<std::int64_t>(weights.nbytes()) - c.d_vocab * 4);
  stored.stored_dtype = DType::bf16;
  plan =
      plan_load(stored, {.processing = Processing::none(), .dtype = DType::f32, .on_host = true});
  EXPECT_GT(plan.host(), plan.mapped);
}

TEST_F(MemoryPlanTest, ProcessedWeightsAreCountedAsTheyAreMade) {
  Weights processed = process(weights, {});
  std::set<const std::byte*> raw;
  weights.for_each([&](const std::string&, const Array& a) { raw.insert(a.bytes()); });
  std::int64_t made = 0;
  processed.for_each([&](const std::string&, const Array& a) {
    if (!raw.contains(a.bytes())) made += static_cast<std::int64_t>(a.nbytes());
  });
  Config stored = c;
  stored.stored_dtype = DType::f32;
  MemoryPlan plan = plan_load(stored, {.processing = {}, .dtype = DType::f32, .on_host = true});
  EXPECT_EQ(item(plan, "processed weights"), made);
  plan = plan_load(stored, {.processing = {}, .dtype = DType::bf16, .on_host = false});
  std::int64_t all = static_cast<std::int64_t>(processed.nbytes()) / 2;
  EXPECT_EQ(item(plan, "rounded to bfloat16"), all);
  EXPECT_EQ(plan.device(), all);
}

TEST_F(MemoryPlanTest, EachStepCountsWhatItRewrites) {
  std::set<const std::byte*> raw;
  weights.for_each([&](const std::string&, const Array& a) { raw.insert(a.bytes()); });
  for (int step = 0; step < 4; ++step) {
    Processing one = Processing::none();
    (step == 0   ? one.fold_ln
     : step == 1 ? one.center_writing_weights
     : step == 2 ? one.center_unembed
                 : one.fold_value_biases) = true;
    std::int64_t made = 0;
    process(weights, one).for_each([&](const std::string&, const Array& a) {
      if (!raw.contains(a.bytes())) made += static_cast<std::int64_t>(a.nbytes());
    });
    EXPECT_EQ(item(plan_load(c, {.processing = one, .dtype = DType::f32, .on_host = true}),
                   "processed weights"),
              made)
        << step;
  }
}

TEST_F(MemoryPlanTest, WhatIsKeptGrowsWithDepthAndWhatIsAliveDoesNot) {
  PlannedUse all{.on_host = true};
  PlannedUse nothing{.on_host = true, .keep = [](Site, std::int64_t) { return false; }};
  Config twelve = c;
  twelve.n_layers = 12;
  Weights deep = outline(twelve, DType::f32);
  Request request = run_of(256, 16), deep_request = run_of(256, 16);
  deep_request.rows.end_layer = 12;
  EXPECT_EQ(plan_run(weights, request, nothing).host(),
            plan_run(deep, deep_request, nothing).host());
  EXPECT_GT(plan_run(deep, deep_request, all).host(),
            1.5 * static_cast<double>(plan_run(weights, request, all).host()));
}

TEST_F(MemoryPlanTest, KeptIsWhatIsAskedFor) {
  Config wide = c;
  wide.d_vocab = 1'000'000;  // so that the logits are the peak
  Weights outlined = outline(wide, DType::f32);
  auto kept = [&](const PlannedUse& use) {
    return item(plan_run(outlined, run_of(2, 8), use), "activations kept");
  };
  auto z = [](Site site, std::int64_t) { return site == Site::z; };
  std::int64_t bytes = 2 * 8 * c.d_model * 4, logits = 2 * 8 * wide.d_vocab * 4;
  EXPECT_EQ(kept({.on_host = true, .keep = z}), c.n_layers * bytes + logits);
  EXPECT_EQ(kept({.on_host = true, .keep = z, .kept_positions = 2}),
            c.n_layers * bytes / 4 + logits);
  EXPECT_EQ(kept({.on_host = true, .keep = [](Site, std::int64_t) { return false; }}), logits)
      << "the output is always kept";
}

TEST_F(MemoryPlanTest, ADeviceHoldsItsOwnAndTheHostItsCopies) {
  MemoryPlan here = plan_run(weights, run_of(2, 8), {.on_host = true});
  MemoryPlan there = plan_run(weights, run_of(2, 8), {.on_host = false});
  EXPECT_EQ(here.device(), 0);
  EXPECT_GT(there.device(), 0);
  EXPECT_LT(there.device(), here.host());
  EXPECT_GT(plan_run(weights, run_of(2, 8), {.on_host = true, .drift = true}).host(), here.host());
}

// A run whose tensors nobody takes leaves its output and nothing else.
TEST_F(MemoryPlanTest, WhatIsNotRecordedIsNotKept) {
  for (bool on_host : {true, false}) {
    PlannedUse use{.on_host = on_host, .verified = false};
    MemoryPlan recorded = plan_run(weights, run_of(64, 16), use);
    use.recorded = false;
    MemoryPlan alone = plan_run(weights, run_of(64, 16), use);
    std::int64_t logits = 64 * 16 * c.d_vocab * 4;
    EXPECT_LE(item(alone, "activations kept"), logits);
    EXPECT_GE(alone.host(), on_host ? logits : item(alone, "activations kept"));
    EXPECT_LT(alone.host(), recorded.host() - item(recorded, "activations kept") / 2);
    EXPECT_EQ(alone.device(), recorded.device());
  }
}

// Each thread has blocks of its own, which grow with the rows of the run.
TEST_F(MemoryPlanTest, TheRoughFigureIsNeverBelowThePlan) {
  Request edited = run_of(2, 16), patched = run_of(40, 16), on_demand = run_of(40, 16);
  edited.plan = Plan({{.kind = EditKind::scale, .site = Site::attn_scores, .layer = 0, .factor = 2},
                      {.kind = EditKind::zero, .site = Site::q_input, .layer = 1}});
  patched.plan = Plan({{.kind = EditKind::zero, .site = Site::result, .layer = 0}});
  on_demand.on_demand = {{Site::result, 1}, {Site::q_input, 0}};
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (const Request& request :
         {run_of(1, 1), run_of(16, 16), run_of(3, 15), run_of(300, 16), edited, patched, on_demand})
      for (std::int64_t threads : {1, 64})
        for (bool on_host : {true, false}) {
          PlannedUse use{.on_host = on_host, .drift = true, .threads = threads};
          MemoryPlan plan = plan_run(outline(c, dtype), request, use);
          EXPECT_LE(plan.host() + plan.device(), rough_run_bytes(c, request, threads))
              << name_of(dtype) << ", " << request.rows.batch << " prompts, " << threads
              << " threads, " << on_host;
        }
}

// ---- what there is ----

class Available : public testing::Test {
 protected:
  Scratch root;
  void write(const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root.path() / file).parent_path());
    std::ofstream(root.path() / file) << text;
  }
};

TEST_F(Available, IsWhatTheSystemHas) {
  EXPECT_FALSE(available_host_memory(root.path()));
  write("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable:     700 kB\n");
  auto found = available_host_memory(root.path());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->bytes, 700 * 1024);
  EXPECT_EQ(found->from, "MemAvailable of /proc/meminfo");
}

TEST_F(Available, IsWhatTheControlGroupLeavesWhereThatIsLess) {
  write("proc/meminfo", "MemAvailable: 700 kB\n");
  write("proc/self/cgroup", "0::/a/b\n");
  write("sys/fs/cgroup/a/b/memory.max", "max\n");
  write("sys/fs/cgroup/a/b/memory.current", "1000\n");
  EXPECT_EQ(available_host_memory(root.path())->bytes, 700 * 1024);
  write("sys/fs/cgroup/a/memory.max", "400000\n");
  write("sys/fs/cgroup/a/memory.current", "150000\n");
  write("sys/fs/cgroup/a/memory.stat", "anon 100\nfile 70000\ninactive_file 50000\n");
  auto found = available_host_memory(root.path());
  EXPECT_EQ(found->bytes, 400000 - 150000 + 50000);
  EXPECT_EQ(found->from, "the limit of the control group");
  write("sys/fs/cgroup/a/memory.current", "500000\n");
  write("sys/fs/cgroup/a/memory.stat", "inactive_file 0\n");
  EXPECT_EQ(available_host_memory(root.path())->bytes, 0);
}

TEST_F(Available, ReadsTheOlderHierarchyToo) {
  write("proc/meminfo", "MemAvailable: 700 kB\n");
  write("proc/self/cgroup", "5:cpu:/x\n4:memory:/job\n");
  write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "300000\n");
  write("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "100000\n");
  EXPECT_EQ(available_host_memory(root.path())->bytes, 200000);
}

TEST(Sizes, AreReadable) {
  EXPECT_EQ(size_in_words(640), "640 bytes");
  EXPECT_EQ(size_in_words(1536), "1.5 KiB");
  EXPECT_EQ(size_in_words(std::int64_t{10} << 30), "10 GiB");
}

}  // namespace
}  // namespace lenscpp
