// The plan beside what the device pass really records and allocates, and where preflight refuses.
#include "lens/preflight.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "lens/split_run.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

// Every allocation on the CPU while it is in force: the largest, and the most held at once.
class Allocations : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device) override {
    held += bytes;
    largest = std::max(largest, bytes);
    peak = std::max(peak, held);
    count += bytes > 0;
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t held = 0, largest = 0, peak = 0, count = 0;
};

void PrintTo(const struct Case& c, std::ostream* out);

struct Case {
  std::string name;
  DType dtype;
  bool processed;
  Plan plan;
  std::set<std::pair<Site, std::int64_t>> on_demand;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

std::vector<Case> cases() {
  std::vector<Case> all;
  Edit zero{.kind = EditKind::zero, .site = Site::q_input, .layer = 1, .where = {.head = 1}};
  Edit scale{.kind = EditKind::scale, .site = Site::ln2_scale, .layer = 0, .factor = 2};
  Edit mean{.kind = EditKind::mean, .site = Site::z, .layer = 2};
  Edit result{.kind = EditKind::zero, .site = Site::result, .layer = 0, .where = {.head = 0}};
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    for (bool processed : {false, true}) {
      std::string name = std::string(name_of(dtype)) + (processed ? "_processed" : "_raw");
      all.push_back({name, dtype, processed, {}, {}});
      all.push_back(
          {name + "_on_demand",
           dtype,
           processed,
           {},
           {{Site::result, 1}, {Site::q_input, 0}, {Site::mlp_in, 2}, {Site::tokens, 0}}});
      all.push_back({name + "_edited", dtype, processed, Plan({zero, scale, mean, result}), {}});
    }
  return all;
}

class PlanBesidePass : public testing::TestWithParam<Case> {};

// Batch and length are large enough for activations to outweigh what kernels keep for themselves.
TEST_P(PlanBesidePass, NothingIsRecordedOrAllocatedThatWasNotPlanned) {
  auto [name, dtype, processed, plan, on_demand] = GetParam();
  Weights loaded =
      load_weights(golden::folder("three_layers"), dtype == DType::f64 ? DType::f64 : DType::f32);
  if (processed) loaded = process(loaded, {});
  auto weights = std::make_shared<const Weights>(cast(loaded, dtype));
  std::int64_t batch = 24, pos = 16;
  Request request{
      .rows = Rows::from_tokens(std::vector<std::int64_t>(batch * pos, 3), batch, weights->config),
      .plan = plan,
      .on_demand = on_demand};
  Weights outlined = outline(weights->config, dtype);
  auto links = plan_links(outlined, request);

  Recorder recorder;
  auto seen = std::make_shared<Allocations>();
  {
    Transformer transformer(weights, at::kCPU);
    c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, seen);
    transformer.run(request, &recorder);
  }
  ASSERT_GT(seen->count, 50) << "the hook on allocations is not in force";

  std::int64_t largest = planned_mask(outlined, request).bytes();
  std::map<TensorId, const PlannedTensor*> planned;
  for (const PlannedLink& link : links) {
    planned[link.output.id] = &link.output;
    largest = std::max(largest, link.output.bytes());
    for (const PlannedTensor& part : link.parts) largest = std::max(largest, part.bytes());
  }
  EXPECT_EQ(planned.size(), recorder.tensors().size());
  for (const auto& [id, value] : recorder.tensors()) {
    ASSERT_TRUE(planned.contains(id)) << to_string(id);
    EXPECT_EQ(planned[id]->shape, value.shape()) << to_string(id);
    EXPECT_EQ(planned[id]->type.name, name_of(value.dtype())) << to_string(id);
    EXPECT_EQ(planned[id]->bytes(), static_cast<std::int64_t>(value.nbytes())) << to_string(id);
  }
  EXPECT_LE(seen->largest, largest);
  EXPECT_GE(seen->largest, largest / 2) << "a plan that is much too large refuses what would run";
  // Everything is kept by the recorder: the plan of an unverified run.
  std::int64_t peak = plan_run(outlined, request, {.on_host = true, .verified = false}).host();
  EXPECT_LE(seen->peak, peak);
  EXPECT_GE(1.3 * static_cast<double>(seen->peak), static_cast<double>(peak));
}

// With nothing recorded the pass holds what it needs itself.
TEST_P(PlanBesidePass, WhatADeviceHoldsAtOnceIsPlanned) {
  auto [name, dtype, processed, plan, on_demand] = GetParam();
  Weights loaded =
      load_weights(golden::folder("three_layers"), dtype == DType::f64 ? DType::f64 : DType::f32);
  if (processed) loaded = process(loaded, {});
  auto weights = std::make_shared<const Weights>(cast(loaded, dtype));
  Request request{
      .rows = Rows::from_tokens(std::vector<std::int64_t>(24 * 16, 3), 24, weights->config),
      .plan = plan,
      .on_demand = on_demand};
  auto seen = std::make_shared<Allocations>();
  {
    Transformer transformer(weights, at::kCPU);
    c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, seen);
    transformer.run(request, nullptr);
  }
  std::int64_t held = plan_run(*weights, request, {.on_host = false}).device();
  // The CPU stands in for a device; it packs the operands of bfloat16 products, at 128 KiB a
  // thread: not part of a device's plan, and of the peak only where that is a product.
  std::int64_t packing = dtype == DType::bf16 ? 128 << 10 : 0;
  EXPECT_LE(seen->peak, held + packing);
  EXPECT_GE(1.3 * static_cast<double>(seen->peak), static_cast<double>(held));
}

INSTANTIATE_TEST_SUITE_P(Cases, PlanBesidePass, testing::ValuesIn(cases()),
                         [](const auto& i) { return i.param.name; });

// ---- where it refuses ----

DeviceLimits at_most(std::int64_t bytes) {
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

TEST(PreflightLoad, RefusesAWeightBeyondALimit) {
  std::string said = refusal([] {
    HookedTransformer::from_pretrained(golden::folder("three_layers"), {.limits = at_most(1000)});
  });
  EXPECT_NE(said.find("[preflight] toy cannot hold this model: embed.W_E"), said.npos) << said;
}

TEST(PreflightLoad, TheCpuHasNoLimits) {
  EXPECT_TRUE(limits_of_device("cpu").limits.empty());
  EXPECT_FALSE(limits_of_device("mps").limits.empty());
  EXPECT_EQ(limits_of_device("cuda:1").device, "cuda:1");
  EXPECT_FALSE(available_device_memory("cpu"));
  EXPECT_FALSE(available_device_memory("mps:0")) << "not on this machine";
}

TEST(PreflightAsk, ReadsTheConfigAlone) {
  auto folder = std::filesystem::temp_directory_path() / "lenscpp-config-alone";
  std::filesystem::create_directories(folder);
  std::filesystem::copy_file(golden::folder("three_layers") / "config.json", folder / "config.json",
                             std::filesystem::copy_options::overwrite_existing);
  Preflight p = preflight(folder, {.load = {.device = "mps"}, .batch = 3, .pos = 5});
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(p.fits());
  EXPECT_EQ(p.model, "lenscpp-config-alone");
  EXPECT_EQ(p.batch, 3);
  EXPECT_EQ(p.largest_batch, 3);
  EXPECT_GT(p.load.device(), 0);
}

TEST(PreflightAsk, RefusesWhatNoRunTakes) {
  auto ask = [](const PreflightOptions& o) { preflight(golden::folder("three_layers"), o); };
  EXPECT_THROW(ask({.batch = 0}), std::invalid_argument);
  EXPECT_THROW(ask({.pos = 17}), std::out_of_range) << "n_ctx is 16";
  EXPECT_THROW(ask({.names = std::vector<std::string>{"blocks.0.hook_nothing"}}),
               std::invalid_argument);
  EXPECT_THROW(ask({.load = {.first_n_layers = 4}}), std::out_of_range);
  EXPECT_NO_THROW(ask({.load = {.first_n_layers = 1}}));
}

TEST(PreflightAsk, OnDemandTensorsCount) {
  auto tensors = [](std::optional<std::vector<std::string>> names) {
    return preflight(golden::folder("three_layers"), {.pos = 4, .names = std::move(names)})
        .tensors.size();
  };
  EXPECT_GT(tensors(std::vector<std::string>{"blocks.0.attn.hook_result"}), tensors({}));
}

}  // namespace
}  // namespace lenscpp
