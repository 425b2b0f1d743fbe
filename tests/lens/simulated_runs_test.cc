// Whole runs on the simulated device: clean ones are the CPU's to the bit and never refused, faults
// are where they were asked for, and what they leave is refused.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"
#include "verify/device/simulated.h"
#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

const std::filesystem::path kModel =
    std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi";

const HookedTransformer& model_on(const std::string& device, DType dtype = DType::f32) {
  static std::map<std::pair<std::string, DType>, HookedTransformer> models;
  auto found = models.find({device, dtype});
  if (found == models.end())
    found = models
                .emplace(std::pair(device, dtype), HookedTransformer::from_pretrained(
                                                       kModel, {.device = device, .dtype = dtype}))
                .first;
  return found->second;
}
Tokens prompt() {
  return model_on("cpu").to_tokens("When John and Mary went to the store, John gave the bag to");
}
Tokens random_prompt(std::mt19937_64& random) {
  Tokens tokens{.batch = 1 + static_cast<std::int64_t>(random() % 3),
                .pos = 1 + static_cast<std::int64_t>(random() % 24)};
  for (std::int64_t i = 0; i < tokens.batch * tokens.pos; ++i)
    tokens.ids.push_back(static_cast<std::int64_t>(
        random() % static_cast<std::uint64_t>(model_on("cpu").config().d_vocab)));
  return tokens;
}

// How a run with faults in the device ended.
struct Refusal {
  std::string first;  // failing point; empty: verified
  std::vector<DeviceFaults::Firing> log;
};
Refusal run_with(const FaultSpec& spec, const HookedTransformer& model = model_on("simulated"),
                 const Tokens& tokens = prompt()) {
  auto faults = std::make_shared<DeviceFaults>(std::vector{spec}, model.config());
  RunOptions options{.names = std::vector<std::string>{}, .device_faults = faults};
  try {
    model.run_with_cache(tokens, options);
  } catch (const VerificationFailed& e) {
    return {e.verdict().first_failure()->name, faults->log()};
  }
  return {"", faults->log()};
}

TEST(SimulatedRuns, AreTheCpusToTheBit) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    VerifiedCache here = model_on("cpu", dtype).run_with_cache(prompt()),
                  there = model_on("simulated", dtype).run_with_cache(prompt());
    ASSERT_EQ(here.activations().entries().size(), there.activations().entries().size());
    for (std::size_t i = 0; i < here.activations().entries().size(); ++i)
      EXPECT_EQ(here.activations().entries()[i].digest, there.activations().entries()[i].digest)
          << here.activations().entries()[i].name << " in " << name_of(dtype);
    EXPECT_NE(there.record().device_name.find("simulated"), std::string::npos);
  }
  EXPECT_TRUE(simulated_device().violations().empty());
}

// `LENSCPP_CLEAN_RUNS=1000` is the full size; the default is what every test run does.
TEST(SimulatedRuns, AreNotRefusedWhenClean) {
  const char* asked = std::getenv("LENSCPP_CLEAN_RUNS");
  int runs = asked != nullptr ? std::atoi(asked) : 16, verified = 0;
  ASSERT_GE(runs, 16) << "LENSCPP_CLEAN_RUNS";
  std::int64_t compared = 0;
  std::mt19937_64 random(20240602);
  for (int i = 0; i < runs; ++i) {
    DType dtype = std::array{DType::f32, DType::bf16, DType::f16, DType::f64}[i % 4];
    Tokens tokens = random_prompt(random);
    try {
      compared += model_on("simulated", dtype)
                      .run_with_cache(tokens, {.names = std::vector<std::string>{}})
                      .verdict()
                      .n_compared();
      verified += 1;
    } catch (const VerificationFailed& e) {
      FAIL() << "run " << i << " in " << name_of(dtype) << ": " << e.what();
    }
  }
  EXPECT_EQ(verified, runs);
  EXPECT_TRUE(simulated_device().violations().empty());
  std::cout << runs << " clean runs on the simulated device: " << compared
            << " elements compared, none refused\n";
}

// A changed decomposition would silence faults: the leaves of a forward pass are listed.
TEST(SimulatedRuns, ReachTheDeviceByTheseOperators) {
  const HookedTransformer& model = model_on("simulated");
  std::map<std::string, std::int64_t> before, during;
  for (const auto& [op, n] : simulated_device().calls()) before[op] = n;
  model.run_unverified(prompt(), {.names = std::vector<std::string>{}});
  for (const auto& [op, n] : simulated_device().calls())
    if (n != before[op]) during[op] = n - before[op];
  std::int64_t layers = model.config().n_layers;
  auto links = wire(
      model.weights(),
      {.rows = Rows::from_tokens(prompt().ids, 1, model.config()), .plan = {}, .on_demand = {}});
  std::map<std::string, std::int64_t> expected{
      {"add", 2 * layers + 1},
      {"addmm", 4 * layers + 1},
      {"baddbmm", layers},
      {"bmm", layers},
      {"_softmax", layers},
      {"gelu", layers},
      {"index_select", 2},
      {"native_layer_norm", 2 * layers + 1},
      {"reciprocal", 2 * layers + 1},
      {"copy_to_device", 3},  // the mask, token ids, positions
      {"copy_to_host", static_cast<std::int64_t>(links.size()) + 1},
      {"copy_on_device", 7 * layers}};
  EXPECT_EQ(during, expected);
}

TEST(SimulatedRuns, TellTheDeviceWhichTensorComesNext) {
  const HookedTransformer& model = model_on("simulated");
  for (bool on_demand : {false, true}) {
    RunOptions options;
    if (on_demand) {
      options.names = hook_names(model.config(), true);
    } else {
      options.plan = Plan({{.kind = EditKind::scale,
                            .site = Site::q_input,
                            .layer = 1,
                            .where = {},
                            .factor = 1.25}});
    }
    Request request{.rows = Rows::from_tokens(prompt().ids, 1, model.config()),
                    .plan = options.plan,
                    .on_demand = {}};
    if (on_demand)
      for (const TensorId& id : selected_hooks(model.config(), options))
        if (info(id.site).presence == Presence::on_demand)
          request.on_demand.insert({id.site, id.layer});
    std::vector<TensorId> order, arrived;
    for (const Link& link : wire(model.weights(), request)) order.push_back(link.output);
    options.interference = [&](const TensorId& id, const at::Tensor& x) {
      arrived.push_back(id);
      return x;
    };
    model.run_with_cache(prompt(), options);
    EXPECT_EQ(arrived, order);
  }
}

TEST(SimulatedRuns, HaveAFaultWhereItWasAskedFor) {
  struct Where {
    const char *fault, *hook, *op;
    std::map<std::string, double> parameters = {};
  };
  for (const Where& w : std::initializer_list<Where>{
           {"S1", "blocks.1.hook_attn_out", "addmm", {{"transposed", 1}}},
           {"S1", "blocks.0.mlp.hook_pre", "addmm", {{"transposed", 1}}},
           {"S1", "unembed.hook_out", "addmm"},  // W_U is handed over transposed
           {"S2", "blocks.2.mlp.hook_post", "gelu", {{"transposed", 1}}},
           {"S4", "blocks.1.ln1.hook_scale", "native_layer_norm", {{"rows", 1}}},
           {"Z1", "blocks.2.hook_mlp_out", "addmm", {{"columns", 100}}},
           {"Z3", "blocks.3.mlp.hook_pre", "addmm"},
           {"Z4", "blocks.1.hook_attn_out", "addmm"},
           {"Z5", "blocks.2.mlp.hook_pre", "addmm"},
           {"Z7", "hook_embed", "index_select"},
           {"U1", "blocks.1.attn.hook_z", "bmm", {{"queries", 0}}},
           {"M1", "blocks.2.attn.hook_attn_scores", "baddbmm", {{"always", 1}}},
           {"M3", "blocks.3.attn.hook_attn_scores", "baddbmm", {{"factor", 2}}},
           {"M7", "blocks.0.attn.hook_z", "bmm"},
           {"M10", "blocks.1.attn.hook_attn_scores", "baddbmm"},
           {"P1", "ln_final.hook_scale", "native_layer_norm", {{"variance", 1e6}}},
           {"P3", "blocks.1.mlp.hook_post", "gelu", {{"beyond", 1}}},
           {"P5", "blocks.1.mlp.hook_pre", "addmm"},
           {"P6", "blocks.3.hook_mlp_out", "addmm"},
           {"C1", "hook_embed", "copy_to_device", {{"always", 1}}},
           {"C3", "blocks.2.hook_attn_out", "addmm"}}) {
    Refusal refusal = run_with({.name = w.fault, .parameters = w.parameters, .hook = w.hook});
    ASSERT_FALSE(refusal.log.empty()) << w.fault << " at " << w.hook << " did not fire";
    EXPECT_EQ(refusal.first, w.hook) << w.fault;
    for (const auto& firing : refusal.log) {
      EXPECT_EQ(to_string(*firing.id), w.hook) << w.fault;
      EXPECT_EQ(firing.op, w.op) << w.fault;
      EXPECT_GT(firing.changed, 0) << w.fault;
    }
  }
  EXPECT_EQ(run_with({.name = "S1", .parameters = {{"transposed", 1}}, .hook = "hook_embed"}).first,
            "")
      << "no product computes an embedding";
  EXPECT_NO_THROW(model_on("simulated").run_with_cache(prompt())) << "nothing stays armed";
}

// What was computed right and handed out, and then overwritten, is refused at its first reader.
TEST(SimulatedRuns, AreRefusedAfterAWriteOutsideOfAnAllocation) {
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    Refusal refusal = run_with(
        {.name = "U3", .parameters = {{"always", 1}, {"call", 5}, {"elements", 64}}, .seed = seed});
    ASSERT_EQ(refusal.log.size(), 1u);
    refused += !refusal.first.empty();
  }
  EXPECT_GT(refused, 0);
}

// The condition decides, not the operator: a run of one token has no second row.
TEST(SimulatedRuns, AreVerifiedWhereTheConditionIsNotMet) {
  const HookedTransformer& model = model_on("simulated");
  Tokens one = model.tokens_of({5}, 1);
  Refusal vector = run_with({.name = "P5", .hook = "blocks.1.mlp.hook_pre"}, model, one);
  EXPECT_TRUE(vector.log.empty() && vector.first.empty()) << "matrix times vector is exact";
  std::vector<std::int64_t> ids(32, 7);
  Refusal whole = run_with({.name = "U1", .parameters = {{"queries", 0}}, .hook = "attn.hook_z"},
                           model, model.tokens_of(ids, 1));
  EXPECT_TRUE(whole.log.empty() && whole.first.empty()) << "32 keys";
  ids.pop_back();
  EXPECT_EQ(run_with({.name = "U1", .parameters = {{"queries", 0}}, .hook = "attn.hook_z"}, model,
                     model.tokens_of(ids, 1))
                .first,
            "blocks.0.attn.hook_z")
      << "31 keys";
  EXPECT_EQ(run_with({.name = "M1"}).first, "") << "float32";
  EXPECT_EQ(run_with({.name = "M1"}, model_on("simulated", DType::bf16)).first,
            "blocks.0.attn.hook_attn_scores");
}

TEST(SimulatedRuns, RefuseDeviceFaultsOnAnotherDevice) {
  try {
    run_with({.name = "S1"}, model_on("cpu"));
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("needs the simulated device; this model is on \"cpu\""),
              std::string::npos);
  }
}

TEST(SimulatedRuns, TakeFaultsOfBothKinds) {
  const HookedTransformer& model = model_on("simulated");
  InjectedFaults both({{.name = "one_element", .hook = "blocks.3.hook_mlp_out"},
                       {.name = "P6", .hook = "blocks.1.mlp.hook_pre"}},
                      model.config());
  RunOptions options{.interference = both.interference(), .device_faults = both.device_faults()};
  EXPECT_THROW(model.run_with_cache(prompt(), options), VerificationFailed);
  Request request{.rows = {}, .plan = {}, .on_demand = {}};
  auto log = both.log(request);
  ASSERT_EQ(log.size(), 2u);
  EXPECT_EQ(log[0].name, "blocks.3.hook_mlp_out");
  EXPECT_EQ(log[0].op, "");
  EXPECT_EQ(log[1].name, "blocks.1.mlp.hook_pre");
  EXPECT_EQ(log[1].op, "addmm");
}

}  // namespace
}  // namespace lenscpp
