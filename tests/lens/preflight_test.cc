// The plan beside what the device pass really records and allocates, and where preflight refuses.
#include "lens/preflight.h"

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "hooks/transformer/torch_array.h"
#include "lens/split_run.h"
#include "tests/golden_cases.h"
#include "tests/widened.h"

namespace lenscpp {
namespace {

// Every allocation on the CPU while it is in force: the largest, and the most held at once.
class Allocations : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t,
                         c10::Device) override {
    held += bytes;
    largest = std::max(largest, bytes);
    if (bytes > 0) sizes.insert(bytes);
    peak = std::max(peak, held);
    count += bytes > 0;
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t held = 0, largest = 0, peak = 0, count = 0;
  std::set<std::int64_t> sizes;
};

void PrintTo(const struct Case& c, std::ostream* out);

constexpr std::int64_t kBatch = 24, kLength = 16;

struct Case {
  std::string name;
  DType dtype;
  bool processed;
  Plan plan;
  std::set<std::pair<Site, std::int64_t>> on_demand;
  bool grouped = false;          // one head of keys and values for all of queries
  std::int64_t first_pos = 0;    // base keys and values before it
  std::int64_t first_layer = 0;  // from a residual where it is not 0
  Activation activation = Activation::gelu_tanh;
  bool experts = false;     // another checkpoint: rotary positions, a window, experts
  std::string family = "";  // a checkpoint of tests/golden/families, widened
};

Array zeros(Shape shape, DType dtype) { return MutableArray(std::move(shape), dtype).freeze(); }

std::shared_ptr<const Weights> weights_of(const Case& wanted) {
  if (!wanted.family.empty()) {
    std::mt19937_64 random(1);
    Weights w = golden::widened(read_config(golden::family_folder(wanted.family)), random);
    if (wanted.processed) w = process(w, {});
    return std::make_shared<const Weights>(cast(w, wanted.dtype));
  }
  bool f64 = wanted.dtype == DType::f64;
  Weights w = load_weights(
      wanted.experts ? golden::family_folder("mixtral_window") : golden::folder("three_layers"),
      f64 ? DType::f64 : DType::f32);
  if (!wanted.experts) w.config.activation = wanted.activation;
  if (wanted.grouped) {
    w.config.n_kv_heads = 1;
    std::int64_t columns = (w.config.n_heads + 2) * w.config.d_head;
    for (LayerWeights& layer : w.layers) {
      layer.W_QKV = snapshot(alias(layer.W_QKV).narrow(1, 0, columns).contiguous());
      layer.b_QKV = layer.b_QKV.rows(0, columns);
    }
  }
  if (wanted.processed) w = process(w, {});
  return std::make_shared<const Weights>(cast(w, wanted.dtype));
}

// Batch and length are large enough for activations to outweigh what kernels keep for themselves.
Request request_of(const Case& wanted, const Config& c) {
  // Kernels keep more for themselves beside the narrower tensors of families.
  std::int64_t batch = wanted.family.empty() ? kBatch : 3 * kBatch;
  Request request{
      .rows = Rows::from_tokens(std::vector<std::int64_t>(batch * kLength, 3), batch, c),
      .plan = wanted.plan,
      .on_demand = wanted.on_demand};
  Rows& rows = request.rows;
  if (wanted.first_layer > 0) {
    rows.tokens.clear();
    rows.first_layer = wanted.first_layer;
    rows.start_residual = zeros({batch, kLength, c.d_model}, wanted.dtype);
  }
  if (wanted.first_pos > 0) {
    rows.first_pos = wanted.first_pos;
    rows.pos -= wanted.first_pos;
    rows.tokens.resize(rows.tokens.empty() ? 0 : static_cast<std::size_t>(batch * rows.pos));
    rows.positions.clear();
    for (std::int64_t i = 0; i < batch * rows.pos; ++i)
      rows.positions.push_back(rows.first_pos + i % rows.pos);
    if (rows.start_residual)
      rows.start_residual = zeros({batch, rows.pos, c.d_model}, wanted.dtype);
    Array base = zeros({batch, rows.first_pos, c.n_kv_heads, c.d_head}, wanted.dtype);
    for (std::int64_t l = rows.first_layer; l < c.n_layers; ++l) rows.base.push_back({base, base});
  }
  request.validate(c);
  return request;
}

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
      Edit patch{.kind = EditKind::patch,
                 .site = Site::resid_pre,
                 .layer = 1,
                 .where = {.batch = 2},
                 .source = zeros({kBatch, kLength, 36}, dtype)};
      Edit add{.kind = EditKind::add,
               .site = Site::mlp_out,
               .layer = 0,
               .source = zeros({36}, dtype),
               .factor = 2};
      Edit given{.kind = EditKind::mean,
                 .site = Site::attn_out,
                 .layer = 2,
                 .source = zeros({kBatch, kLength, 36}, dtype)};
      all.push_back({name + "_patched", dtype, processed, Plan({patch, add, given}), {}});
      if (!processed) all.push_back({name + "_grouped", dtype, processed, {}, {}, true});
      all.push_back({name + "_grouped_edited", dtype, processed, Plan({zero}), {}, true});
      all.push_back({name + "_continued", dtype, processed, {}, {}, false, 4});
      all.push_back({name + "_grouped_continued", dtype, processed, {}, {}, true, 4});
      all.push_back({name + "_started", dtype, processed, {}, {}, false, 0, 1});
      all.push_back({name + "_relu", dtype, processed, {}, {}, false, 0, 0, Activation::relu});
      all.push_back({name + "_erf", dtype, processed, {}, {}, false, 0, 0, Activation::gelu_erf});
      // In bfloat16 what oneDNN packs is larger than this model.
      if (dtype != DType::bf16)
        all.push_back(
            {.name = name + "_experts", .dtype = dtype, .processed = processed, .experts = true});
    }
  for (const char* family : {"llama_grouped", "neox_parallel", "gptj_rotary", "gemma2_grouped",
                             "gemma3_windows", "qwen3_grouped", "bloom_alibi", "olmo2_grouped"})
    for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
      for (bool processed : {false, true}) {
        Case of_family{.name = std::string(family) + "_" + std::string(name_of(dtype)) +
                               (processed ? "_processed" : "_raw"),
                       .dtype = dtype,
                       .processed = processed,
                       .plan = {},
                       .on_demand = {},
                       .grouped = true,
                       .family = family};
        all.push_back(of_family);
        of_family.name += "_continued";
        of_family.first_pos = 4;
        all.push_back(of_family);
      }
  return all;
}

class PlanBesidePass : public testing::TestWithParam<Case> {};

TEST_P(PlanBesidePass, NothingIsRecordedOrAllocatedThatWasNotPlanned) {
  DType dtype = GetParam().dtype;
  auto weights = weights_of(GetParam());
  Request request = request_of(GetParam(), weights->config);
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

  std::set<std::int64_t> sizes{planned_mask(outlined, request).bytes()};
  std::map<TensorId, const PlannedTensor*> planned;
  for (const PlannedLink& link : links) {
    planned[link.output.id] = &link.output;
    sizes.insert(link.output.bytes());
    for (const PlannedTensor& part : link.parts) sizes.insert(part.bytes());
  }
  std::int64_t largest = *sizes.rbegin();
  EXPECT_EQ(planned.size(), recorder.tensors().size());
  for (const auto& [id, value] : recorder.tensors()) {
    ASSERT_TRUE(planned.contains(id)) << to_string(id);
    EXPECT_EQ(planned[id]->shape, value.shape()) << to_string(id);
    EXPECT_EQ(planned[id]->type.name, name_of(value.dtype())) << to_string(id);
    EXPECT_EQ(planned[id]->bytes(), static_cast<std::int64_t>(value.nbytes())) << to_string(id);
  }
  // What oneDNN takes to pack operands of bfloat16 products is of its own sizes.
  for (std::int64_t bytes : seen->sizes)
    if (bytes > 4096 && dtype != DType::bf16) {
      EXPECT_TRUE(sizes.contains(bytes)) << bytes << " bytes";
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
  DType dtype = GetParam().dtype;
  auto weights = weights_of(GetParam());
  Request request = request_of(GetParam(), weights->config);
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
  // Nor are what edits make on the host, the source of a mean in float64 and (which the hook on
  // allocations does not see) the indices of what is touched.
  std::int64_t edits = 0;
  for (const PlannedLink& link : plan_links(*weights, request)) {
    std::int64_t bytes = 0;
    for (const PlannedTensor& part : link.parts)
      bytes += part.role == Role::host ? part.bytes() : 0;
    edits = std::max(edits, bytes);
  }
  // Repeating grouped keys takes up to 3 % more than is planned: within what is left to the system.
  double peak = static_cast<double>(seen->peak) / (GetParam().grouped ? 1.03 : 1);
  EXPECT_LE(peak, static_cast<double>(held + packing + edits));
  EXPECT_GE(1.4 * peak, static_cast<double>(held));
  std::int64_t here =
      plan_run(*weights, request, {.on_host = true, .verified = false, .recorded = false}).host();
  EXPECT_LE(peak, static_cast<double>(here));
  EXPECT_GE(1.5 * peak, static_cast<double>(here - edits));
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

TEST(PreflightAsk, RefusesWhatIsNoDevice) {
  for (const char* device : {"msp", "nonsense", "meta", "cuda:x"})
    EXPECT_THROW(preflight(golden::folder("three_layers"), {.load = {.device = device}}),
                 DeviceError)
        << device;
  for (const char* device : {"mps", "cuda:7"})
    EXPECT_NO_THROW(preflight(golden::folder("three_layers"), {.load = {.device = device}}))
        << device << " need not be here";
}

TEST(PreflightAsk, OfALoadedModelItsOptionsStand) {
  HookedTransformer model = HookedTransformer::from_pretrained(
      golden::folder("three_layers"),
      {.processing = Processing::none(), .dtype = DType::bf16, .limits = at_most(1 << 20)});
  Preflight p = preflight(model, {.batch = 2, .pos = 4});
  EXPECT_EQ(p.model, model.name());
  EXPECT_EQ(p.device, "cpu");
  EXPECT_EQ(p.dtype, DType::bf16);
  EXPECT_EQ(p.limits.device, "toy");
  EXPECT_EQ(p.load.host() + p.load.device(), 0) << "it is there";
  EXPECT_GT(p.run.host(), 0);
  EXPECT_EQ(preflight(model, {}, Elsewhere{"cpu", DType::bf16}).load.host(), 0);
  std::int64_t bytes = 0;
  for (const PlannedTensor& t : planned_weights(model.weights())) bytes += t.bytes();
  p = preflight(model, {}, Elsewhere{"cpu", DType::f32});
  EXPECT_EQ(p.dtype, DType::f32);
  EXPECT_EQ(p.load.host(), 2 * bytes);
  p = preflight(model, {}, Elsewhere{"cuda", DType::bf16});
  EXPECT_EQ(p.load.host(), 0);
  EXPECT_EQ(p.load.device(), bytes);
  EXPECT_THROW(preflight(model, {}, Elsewhere{"msp", DType::bf16}), DeviceError);
  PreflightOptions unverified{.verify = VerifyMode::off};
  EXPECT_LT(preflight(model, unverified).run.host(), preflight(model, {}).run.host());
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
