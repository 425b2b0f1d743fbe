// First layers only: what is read, what is kept, what is still refused.
#include "hooks/checkpoint/loading.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/golden_cases.h"
#include "tests/hooks/checkpoint/tiny_gpt2.h"

namespace lenscpp {
namespace {

std::string of_layer(const std::string& name) {
  auto at = name.find("blocks.");
  return at == name.npos ? "" : name.substr(at + 7, name.find('.', at + 7) - at - 7);
}

// Families store their layers under other names; each by itself must know which to leave out.
TEST(Loading, FirstLayersAreThoseOfTheWholeModelInEveryFamily) {
  for (const std::string& name : golden::family_names()) {
    SCOPED_TRACE(name);
    Weights whole = load_weights(golden::family_folder(name), DType::f32);
    Weights two = load_weights(golden::family_folder(name),
                               Loading{.dtype = DType::f32, .first_n_layers = 2});
    EXPECT_EQ(two.config.n_layers, 2);
    ASSERT_EQ(two.layers.size(), 2u);
    std::map<std::string, std::string> digests;
    whole.for_each([&](const std::string& at, const Array& a) { digests[at] = a.digest(); });
    std::set<std::string> layers;
    two.for_each([&](const std::string& at, const Array& a) {
      EXPECT_EQ(digests[at], a.digest()) << at;
      layers.insert(of_layer(at));
    });
    EXPECT_EQ(layers, (std::set<std::string>{"", "0", "1"}));
  }
}

// Every tensor that is read is scanned: a NaN in a layer left out can only be met by reading it.
TEST(Loading, OfOtherLayersNothingIsRead) {
  Scratch scratch;
  TinyGpt2 model;
  Array& weight = model.tensors["transformer.h.1.mlp.c_fc.weight"];
  weight = changed(weight, 5, NAN);
  model.write(scratch.path());
  expect_refused([&] { load_weights(scratch.path(), DType::f32); }, {"h.1.mlp.c_fc", "a NaN"});
  Weights one = load_weights(scratch.path(), Loading{.dtype = DType::bf16, .first_n_layers = 1});
  EXPECT_EQ(one.layers.size(), 1u);
}

TEST(Loading, WhatIsNoLayersIsRefusedAllTheSame) {
  Scratch scratch;
  TinyGpt2 model;
  model.tensors["transformer.extra.weight"] = model.tensors["transformer.ln_f.weight"];
  model.write(scratch.path());
  expect_refused(
      [&] { load_weights(scratch.path(), Loading{.dtype = DType::f32, .first_n_layers = 1}); },
      {"transformer.extra.weight"});
  for (std::int64_t n : {0, 3, -1})
    expect_refused<std::out_of_range>(
        [&] { load_weights(scratch.path(), Loading{.dtype = DType::f32, .first_n_layers = n}); },
        {"first_n_layers", "2 layers"});
}

TEST(Loading, AnAdapterMayChangeLayersThatAreLeftOut) {
  auto folder = std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/adapters/llama_rslora";
  Adapter adapter = Adapter::open(folder / "adapter");
  std::set<std::string> merged;
  load_weights(folder, Loading{.dtype = DType::f32,
                               .first_n_layers = 1,
                               .adapter = &adapter,
                               .on_merged = [&](const MergedTensor& m) { merged.insert(m.name); }});
  EXPECT_EQ(merged.size(), 5u);
  for (const std::string& name : merged) EXPECT_TRUE(name.starts_with("model.layers.0."));
}

}  // namespace
}  // namespace lenscpp
