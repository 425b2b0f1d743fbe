// Time of the parts of a verified run, at the sizes of GPT-2 small: the exact check of every
// operation, digests, reading of checkpoints, the tokenizer. One thread. Not a test: nothing here
// can fail.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <limits>
#include <map>

#include "hooks/checkpoint/safetensors.h"
#include "hooks/tokenizer/tokenizer.h"
#include "tests/verify/reference/link_builder.h"

namespace lenscpp {
namespace {

using testing_links::random_array;

constexpr std::int64_t kModel = 768, kHeads = 12, kHead = 64, kMlp = 3072, kVocab = 50257;

// Rounded to float32 from the reference: what an honest device would make, and no time spent on
// making it.
Array honest(const Link& link, const std::vector<Array>& inputs, const Shape& output) {
  return compute(link, inputs, output, serial_for).to(DType::f32);
}

void check(benchmark::State& state, const Link& link, const std::vector<Array>& inputs,
           const Shape& output) {
  Array made = honest(link, inputs, output);
  Contract contract = contract_of(link.output.site, DType::f32);
  for (auto _ : state)
    benchmark::DoNotOptimize(check_exact(link, inputs, made, contract, serial_for));
  state.SetItemsProcessed(state.iterations() * numel(output));
  if (!check_exact(link, inputs, made, contract, serial_for).passed())
    state.SkipWithError("an honest output was refused");
}

void product(benchmark::State& state, std::int64_t in, std::int64_t out, bool outputs_are_rows) {
  std::int64_t pos = state.range(0);
  Link link{
      .op = Op::linear,
      .output = {Site::mlp_pre},
      .inputs = {{Site::ln2_normalized}},
      .weight = Matrix{.storage = random_array(outputs_are_rows ? Shape{out, in} : Shape{in, out},
                                               DType::f32, 1, 0.03),
                       .in = in,
                       .out = out,
                       .outputs_are_rows = outputs_are_rows},
      .bias = Vector{.storage = random_array({out}, DType::f32, 2), .size = out}};
  check(state, link, {random_array({1, pos, in}, DType::f32, 3)}, {1, pos, out});
}
void linear(benchmark::State& state) { product(state, state.range(1), state.range(2), false); }
void unembed(benchmark::State& state) { product(state, kModel, kVocab, true); }

void scores(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  Link link{.op = Op::scores,
            .output = {Site::attn_scores},
            .inputs = {{Site::q}, {Site::k}},
            .scalar = 8};
  Shape heads{1, pos, kHeads, kHead};
  check(state, link, {random_array(heads, DType::f32, 1), random_array(heads, DType::f32, 2)},
        {1, kHeads, pos, pos});
}

Array masked_scores(std::int64_t pos) {
  MutableArray s(random_array({1, kHeads, pos, pos}, DType::f32, 1, 1.2));
  for (std::int64_t h = 0; h < kHeads; ++h)
    for (std::int64_t i = 0; i < pos; ++i)
      for (std::int64_t j = i + 1; j < pos; ++j)
        s.set((h * pos + i) * pos + j, -std::numeric_limits<double>::infinity());
  return std::move(s).freeze();
}

const Link kSoftmax{.op = Op::softmax, .output = {Site::pattern}, .inputs = {{Site::attn_scores}}};
void softmax(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  check(state, kSoftmax, {masked_scores(pos)}, {1, kHeads, pos, pos});
}

void mix(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  Link link{.op = Op::mix, .output = {Site::z}, .inputs = {{Site::pattern}, {Site::v}}};
  Array pattern = honest(kSoftmax, {masked_scores(pos)}, {1, kHeads, pos, pos});
  Shape heads{1, pos, kHeads, kHead};
  check(state, link, {pattern, random_array(heads, DType::f32, 2)}, heads);
}

void norm_scale(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  Link link{.op = Op::norm_scale,
            .output = {Site::ln1_scale},
            .inputs = {{Site::resid_pre}},
            .scalar = 1e-5};
  check(state, link, {random_array({1, pos, kModel}, DType::f32, 1)}, {1, pos, 1});
}

void normalize(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  Link link{.op = Op::normalize,
            .output = {Site::ln1_normalized},
            .inputs = {{Site::resid_pre}, {Site::ln1_scale}}};
  Shape shape{1, pos, kModel};
  check(state, link,
        {random_array(shape, DType::f32, 1), random_array({1, pos, 1}, DType::f32, 2, 0.1, 2)},
        shape);
}

void activation(benchmark::State& state) {
  std::int64_t pos = state.range(0);
  Link link{.op = Op::activation,
            .output = {Site::mlp_post},
            .inputs = {{Site::mlp_pre}},
            .activation = Activation::gelu_tanh};
  check(state, link, {random_array({1, pos, kMlp}, DType::f32, 1)}, {1, pos, kMlp});
}

void add(benchmark::State& state) {
  Shape shape{1, state.range(0), kModel};
  Link link{
      .op = Op::add, .output = {Site::resid_mid}, .inputs = {{Site::resid_pre}, {Site::attn_out}}};
  check(state, link, {random_array(shape, DType::f32, 1), random_array(shape, DType::f32, 2)},
        shape);
}

BENCHMARK(linear)
    ->ArgNames({"pos", "in", "out"})
    ->ArgsProduct({{15, 256}, {kModel}, {kModel, kMlp}})
    ->Args({15, kMlp, kModel})
    ->Args({256, kMlp, kModel})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(unembed)->ArgName("pos")->Arg(15)->Arg(256)->Unit(benchmark::kMillisecond);
#define LENSCPP_BOTH_LENGTHS(name) \
  BENCHMARK(name)->ArgName("pos")->Arg(15)->Arg(256)->Unit(benchmark::kMicrosecond)
LENSCPP_BOTH_LENGTHS(scores);
LENSCPP_BOTH_LENGTHS(softmax);
LENSCPP_BOTH_LENGTHS(mix);
LENSCPP_BOTH_LENGTHS(norm_scale);
LENSCPP_BOTH_LENGTHS(normalize);
LENSCPP_BOTH_LENGTHS(activation);
LENSCPP_BOTH_LENGTHS(add);

// ---- reading ----

const std::filesystem::path kTiny =
    std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi";

void digest(benchmark::State& state) {
  Array array = random_array({kModel, kMlp}, DType::f32, 1);
  for (auto _ : state) benchmark::DoNotOptimize(array.digest());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(array.nbytes()));
}
BENCHMARK(digest)->Unit(benchmark::kMicrosecond);

void open_safetensors(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(SafetensorsFile::open(kTiny / "model.safetensors"));
}
BENCHMARK(open_safetensors)->Unit(benchmark::kMicrosecond);

void load_raw(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(load_weights(kTiny, DType::f32));
  state.SetBytesProcessed(state.iterations() *
                          static_cast<std::int64_t>(load_weights(kTiny, DType::f32).nbytes()));
}
BENCHMARK(load_raw)->Unit(benchmark::kMicrosecond);

void encode(benchmark::State& state) {
  Tokenizer tokenizer = Tokenizer::from_file(kTiny / "tokenizer.json");
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += "When John and Mary went to the store, John gave the bag to Mary. ";
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer.encode(text));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
}
BENCHMARK(encode)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace lenscpp
