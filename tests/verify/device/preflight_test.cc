// What is refused before it runs, and in which words.
#include "verify/device/preflight.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

namespace lenscpp {
namespace {

Config gpt2_small() {
  return {.family = "gpt2",
          .n_layers = 12,
          .n_heads = 12,
          .n_kv_heads = 12,
          .d_model = 768,
          .d_head = 64,
          .d_mlp = 3072,
          .d_vocab = 50257,
          .n_ctx = 1024,
          .norm_eps = 1e-5,
          .norm = NormKind::layer_norm,
          .activation = Activation::gelu_tanh,
          .positions = PositionKind::learned,
          .topology = Topology::sequential,
          .scale_attn_by_sqrt_d_head = true,
          .scale_attn_by_inverse_layer = false,
          .tied_unembedding = true,
          .stored_dtype = DType::f32};
}

Request run_of(std::int64_t batch, std::int64_t pos, std::int64_t layers = 12) {
  return {.rows = {.batch = batch, .pos = pos, .tokens = {}, .positions = {}, .end_layer = layers}};
}

DeviceLimits only(Measure measure, std::int64_t most) {
  return {.device = "toy", .limits = {{.name = "a limit", .measure = measure, .most = most}}};
}

std::string refusal(const std::function<void()>& body) {
  try {
    body();
  } catch (const DeviceError& e) {
    return e.what();
  }
  return "";
}

std::int64_t resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmRSS:")) return std::stoll(line.substr(6));
  return 0;
}

// 21 x 1024 x 50257 float32 logits are 4.32e9 bytes, 20 are 4.12e9; 2^32 is 4.29e9.
TEST(PreflightRun, RefusesFourGigabytesOfLogitsWithoutAllocatingThem) {
  Weights weights = outline(gpt2_small(), DType::f32);
  DeviceLimits mps = limits_of("mps", {2, 13});
  std::int64_t before = resident_kib();
  EXPECT_EQ(refusal([&] { require_run_fits(weights, run_of(20, 1024), mps); }), "");
  std::string said = refusal([&] { require_run_fits(weights, run_of(21, 1024), mps); });
  EXPECT_NE(said.find("unembed"), said.npos) << said;
  for (const char* part :
       {"[preflight] 21 prompts of 1024 tokens on mps", "[21, 1024, 50257] of float32",
        "4322906112 bytes", "limit \"2^32 bytes a buffer\"",
        "20 prompts of 1024 tokens, or 21 prompts of 1017"})
    EXPECT_NE(said.find(part), said.npos) << part << "\n" << said;
    // Beside 4 GB: AddressSanitizer keeps what was freed, and its own notes of it.
#ifdef __SANITIZE_ADDRESS__
  constexpr std::int64_t kMost = 64 << 10;
#else
  constexpr std::int64_t kMost = 8 << 10;
#endif
  EXPECT_LT(resident_kib() - before, kMost) << "arithmetic alone";
}

TEST(PreflightRun, FindsTheLargestThatFits) {
  Weights weights = outline(gpt2_small(), DType::f32);
  DeviceLimits mps = limits_of("mps", {2, 13});
  EXPECT_EQ(largest_batch(weights, run_of(500, 1024), mps), 20);
  EXPECT_EQ(largest_batch(weights, run_of(7, 1024), mps), 7) << "no more than was asked for";
  EXPECT_EQ(longest_prompt(weights, run_of(21, 1024), mps), 1017);
  EXPECT_EQ(largest_batch(weights, run_of(3, 1024), only(Measure::bytes, 1000)), 0);
  std::string said =
      refusal([&] { require_run_fits(weights, run_of(3, 4), only(Measure::bytes, 1000)); });
  EXPECT_NE(said.find("not even one token fits: use the CPU"), said.npos) << said;
}

TEST(PreflightRun, TheLargestBatchThereIsCanBeAskedAbout) {
  Weights weights = outline(gpt2_small(), DType::f32);
  std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(largest_batch(weights, run_of(most, 1024), limits_of("mps", {2, 13})), 20);
}

// No prompt of this length fits, and no token at this batch, but fewer prompts and shorter ones do.
TEST(PreflightRun, SaysUseTheCpuWhereNotOneTokenFitsAlone) {
  Weights weights = outline(gpt2_small(), DType::f32);
  DeviceLimits limits = only(Measure::bytes, 4 * 50257 * 4);  // logits of four tokens
  Request request = run_of(8, 8);
  ASSERT_EQ(largest_batch(weights, request, limits), 0);
  ASSERT_EQ(longest_prompt(weights, request, limits), 0);
  std::string said = refusal([&] { require_run_fits(weights, request, limits); });
  EXPECT_NE(said.find("what fits: fewer prompts and shorter ones at once"), said.npos) << said;
  EXPECT_EQ(said.find("use the CPU"), said.npos) << said;
  EXPECT_EQ(refusal([&] { require_run_fits(weights, run_of(1, 1), limits); }), "");
  PreflightQuestion question{.model = "gpt2-small",
                             .device = "toy",
                             .load = {.processing = {}, .dtype = DType::f32, .on_host = false},
                             .use = {.on_host = false},
                             .limits = limits};
  said = in_words(preflight(gpt2_small(), request, question));
  EXPECT_NE(said.find("what fits: fewer prompts and shorter ones at once"), said.npos) << said;
}

TEST(PreflightRun, ALimitIsInclusive) {
  Weights weights = outline(gpt2_small(), DType::f32);
  std::int64_t logits = 2 * 3 * 50257;
  EXPECT_TRUE(run_violations(weights, run_of(2, 3), only(Measure::elements, logits)).empty());
  auto found = run_violations(weights, run_of(2, 3), only(Measure::elements, logits - 1));
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].found, logits);
  EXPECT_EQ(found[0].shape, (Shape{2, 3, 50257}));
}

TEST(PreflightRun, EveryMeasureIsHeld) {
  Weights weights = outline(gpt2_small(), DType::f32);
  auto first = [&](Measure measure, std::int64_t most) {
    auto found = run_violations(weights, run_of(2, 32), only(measure, most));
    return found.empty() ? "" : found[0].what;
  };
  EXPECT_EQ(first(Measure::dimension, 50256), "unembed.hook_out");
  EXPECT_EQ(first(Measure::rank, 3), "blocks.0.attn.hook_q");
  EXPECT_EQ(first(Measure::rank, 4), "");
  EXPECT_EQ(first(Measure::terms, 3071), "blocks.0.hook_mlp_out (product)");
  EXPECT_EQ(first(Measure::terms, 3072), "");
  EXPECT_EQ(first(Measure::product_batch, 23), "blocks.0.attn.hook_attn_scores (product)");
  EXPECT_EQ(first(Measure::product_batch, 24), "");
  EXPECT_EQ(first(Measure::columns, 50256), "unembed.hook_out (product)");
  EXPECT_EQ(first(Measure::columns, 50257), "");
  EXPECT_EQ(first(Measure::bytes, 2 * 32 * 50257 * 4 - 1), "unembed.hook_out");
}

// The kernel with the bug takes tiles of 16 by 16.
TEST(PreflightRun, ProductsOfFewRowsAreNotHeldToTheirTerms) {
  Weights weights = outline(gpt2_small(), DType::f32);
  EXPECT_TRUE(run_violations(weights, run_of(1, 15), only(Measure::terms, 100)).empty());
  EXPECT_FALSE(run_violations(weights, run_of(1, 16), only(Measure::terms, 100)).empty());
}

TEST(PreflightWeights, AreHeldToTheLimitsToo) {
  Weights weights = outline(gpt2_small(), DType::f32);
  std::int64_t table = 50257 * 768;
  EXPECT_EQ(refusal([&] { require_weights_fit(weights, only(Measure::bytes, 4 * table)); }), "");
  std::string said =
      refusal([&] { require_weights_fit(weights, only(Measure::bytes, 4 * table - 1)); });
  EXPECT_NE(said.find("toy cannot hold this model: embed.W_E [50257, 768] of float32"), said.npos)
      << said;
  EXPECT_EQ(weight_violations(weights, only(Measure::table, table - 1)).size(), 1u);
  EXPECT_TRUE(weight_violations(weights, only(Measure::table, table)).empty());
  EXPECT_TRUE(weight_violations(weights, only(Measure::rank, 2)).empty());
}

TEST(PreflightWeights, AKnownBugIsNamedWithItsIssue) {
  Weights weights = outline(gpt2_small(), DType::f32);
  EXPECT_EQ(refusal([&] {
              require_run_fits(weights, run_of(1, 8), limits_of("mps", {2, 13}));
            }),
            "");
  std::string said = refusal([&] {
    require_run_fits(weights, run_of(1, 8), limits_of("mps", {2, 2}));
  });
  EXPECT_NE(said.find("pytorch 116769"), said.npos) << said;
}

TEST(PreflightMemory, RefusesWithBothNumbers) {
  AvailableMemory there{std::int64_t{10} << 30, "a test"};
  std::int64_t margin = margin_of(there);
  EXPECT_EQ(margin, there.bytes / 20);
  EXPECT_EQ(margin_of({1 << 20, "a test"}), 64 << 20);
  EXPECT_EQ(refusal([&] { require_memory("it", there.bytes - margin, there); }), "");
  std::string said = refusal([&] { require_memory("it", there.bytes - margin + 1, there); });
  for (const char* part : {"[preflight] it needs 9.5 GiB", "512 MiB stay with the system",
                           "there are 10 GiB (a test)"})
    EXPECT_NE(said.find(part), said.npos) << part << "\n" << said;
  EXPECT_EQ(refusal([] { require_memory("it", std::int64_t{1} << 60, {}); }), "")
      << "unknown is not refused";
}

PreflightQuestion question(std::int64_t available) {
  return {.model = "gpt2-small",
          .device = "mps",
          .load = {.processing = {}, .dtype = DType::f32, .on_host = false},
          .use = {.on_host = false},
          .limits = limits_of("mps", {2, 13}),
          .host = AvailableMemory{available, "a test"},
          .device_memory = AvailableMemory{std::int64_t{64} << 30, "a test"}};
}

TEST(PreflightAnswer, SaysWhatFits) {
  Preflight p = preflight(gpt2_small(), run_of(2, 64), question(std::int64_t{16} << 30));
  EXPECT_TRUE(p.fits());
  EXPECT_EQ(p.largest_batch, 2);
  EXPECT_NE(in_words(p).find("gpt2-small: 2 prompts of 64 tokens in float32 on mps: fits"),
            std::string::npos);
  nlohmann::json json = to_json(p);
  EXPECT_EQ(json["fits"], true);
  EXPECT_TRUE(json["violations"].empty());
  EXPECT_EQ(json["tensors"].size(), p.tensors.size());
  EXPECT_EQ(json["run"]["host_bytes"], p.run.host());
  EXPECT_EQ(p.largest()->shape, (Shape{50257, 768}));
}

TEST(PreflightAnswer, SaysWhatDoesNot) {
  Preflight p = preflight(gpt2_small(), run_of(40, 1024), question(std::int64_t{1} << 40));
  EXPECT_FALSE(p.fits());
  EXPECT_TRUE(p.memory_fits());
  EXPECT_EQ(p.largest_batch, 20);
  std::string said = in_words(p);
  EXPECT_NE(said.find("beyond: unembed.hook_out [40, 1024, 50257]"), said.npos) << said;
  EXPECT_NE(said.find("what fits: 20 prompts of 1024 tokens"), said.npos) << said;
  EXPECT_EQ(to_json(p)["violations"][0]["limit"]["name"], "2^32 bytes a buffer");

  PreflightQuestion wide = question(std::int64_t{1} << 40);
  wide.load.dtype = DType::f64;
  wide.dtype_refused = why_not("mps", {}, "float64");
  p = preflight(gpt2_small(), run_of(1, 8), wide);
  EXPECT_FALSE(p.fits());
  EXPECT_NE(in_words(p).find("Cannot convert a MPS Tensor"), std::string::npos);
}

std::int64_t bytes_of_weights(DType dtype) {
  std::int64_t bytes = 0;
  for (const PlannedTensor& t : planned_weights(outline(gpt2_small(), dtype))) bytes += t.bytes();
  return bytes;
}
// The least memory in which so much fits beside the margin.
std::int64_t room_for(std::int64_t needed) {
  std::int64_t bytes = std::max(needed + (64 << 20), needed / 19 * 20 + 20);
  while (bytes - margin_of({bytes, ""}) > needed) bytes -= 1;
  while (bytes - margin_of({bytes, ""}) < needed) bytes += 1;
  return bytes;
}
bool fits_in(const PreflightQuestion& question, const Request& request, std::int64_t host,
             std::int64_t device) {
  PreflightQuestion asked = question;
  asked.host = AvailableMemory{host, "a test"};
  asked.device_memory = AvailableMemory{device, "a test"};
  asked.limits = {};
  Preflight p = preflight(gpt2_small(), request, asked);
  EXPECT_EQ(p.fits(), p.memory_fits());
  EXPECT_EQ(in_words(p).find("not enough memory") == std::string::npos, p.fits());
  return p.fits();
}

// A run of 8 prompts of 1024 tokens keeps more than the weights are; each alone would fit.
TEST(PreflightAnswer, TheRunComesOnTopOfTheWeights) {
  std::int64_t plenty = std::int64_t{1} << 50;
  for (DType dtype : {DType::f32, DType::bf16})
    for (bool on_host : {true, false}) {
      PreflightQuestion q = question(plenty);
      q.load.dtype = dtype;
      q.load.on_host = q.use.on_host = on_host;
      Request request = run_of(8, 1024);
      Preflight p = preflight(gpt2_small(), request, q);
      EXPECT_GE(p.load.stays, bytes_of_weights(dtype) * 9 / 10);
      std::int64_t needed = p.load.stays + p.run.host();
      ASSERT_GT(needed, p.load.host());
      EXPECT_EQ(p.host_bytes(), needed);
      std::int64_t room = room_for(needed);
      EXPECT_TRUE(fits_in(q, request, room, plenty));
      EXPECT_FALSE(fits_in(q, request, room - 1, plenty));
      EXPECT_LT(room_for(p.load.host()), room);
      EXPECT_LT(room_for(p.run.host()), room) << "neither alone is refused there";
      if (on_host) continue;
      room = room_for(p.load.device() + p.run.device());
      EXPECT_TRUE(fits_in(q, request, plenty, room));
      EXPECT_FALSE(fits_in(q, request, plenty, room - 1));
    }
}

TEST(PreflightAnswer, AShortRunNeedsWhatTheLoadNeeds) {
  std::int64_t plenty = std::int64_t{1} << 50;
  PreflightQuestion q = question(plenty);
  Preflight p = preflight(gpt2_small(), run_of(1, 1), q);
  ASSERT_LT(p.load.stays + p.run.host(), p.load.host());
  EXPECT_TRUE(fits_in(q, run_of(1, 1), room_for(p.load.host()), plenty));
  EXPECT_FALSE(fits_in(q, run_of(1, 1), room_for(p.load.host()) - 1, plenty));
}

// What there is was measured after the load: only the run is still to be fitted in.
TEST(PreflightAnswer, OfALoadedModelTheRunAlone) {
  std::int64_t plenty = std::int64_t{1} << 50;
  PreflightQuestion q = question(plenty);
  q.load.loaded = AlreadyLoaded{.dtype = DType::f32, .in_place = true};
  Request request = run_of(2, 256);
  Preflight p = preflight(gpt2_small(), request, q);
  EXPECT_EQ(p.load.host() + p.load.device() + p.load.stays + p.load.mapped, 0);
  EXPECT_NE(in_words(p).find("the model is loaded"), std::string::npos);
  EXPECT_TRUE(fits_in(q, request, room_for(p.run.host()), room_for(p.run.device())));
  EXPECT_FALSE(fits_in(q, request, room_for(p.run.host()) - 1, plenty));
  EXPECT_FALSE(fits_in(q, request, plenty, room_for(p.run.device()) - 1));

  std::int64_t weights = bytes_of_weights(DType::bf16);
  q.load.dtype = DType::bf16;  // rounded, and copied there
  p = preflight(gpt2_small(), request, q);
  EXPECT_GE(weights, p.load.stays);
  EXPECT_GT(p.load.stays, weights * 9 / 10) << "without what is folded";
  EXPECT_EQ(p.load.device(), p.load.stays);
  q.load.loaded->dtype = DType::bf16;
  q.load.loaded->in_place = false;  // copied alone
  p = preflight(gpt2_small(), request, q);
  EXPECT_EQ(p.load.host(), 0);
  EXPECT_GT(p.load.device(), weights * 9 / 10);
}

TEST(PreflightAnswer, SaysWhereNoLimitsAreKnown) {
  PreflightQuestion q = question(std::int64_t{1} << 40);
  EXPECT_EQ(in_words(preflight(gpt2_small(), run_of(1, 8), q)).find("no limits"),
            std::string::npos);
  q.limits = limits_of("cuda", {2, 13});
  q.device = "cuda:1";
  EXPECT_NE(in_words(preflight(gpt2_small(), run_of(1, 8), q)).find("no limits known of cuda:1"),
            std::string::npos);
  q.device = "cpu";
  EXPECT_EQ(in_words(preflight(gpt2_small(), run_of(1, 8), q)).find("no limits"),
            std::string::npos);
}

}  // namespace
}  // namespace lenscpp
