// A random GPT-2 folder of a few hundred weights, to be spoilt one field or tensor at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "hooks/checkpoint/safetensors.h"
#include "tests/hooks/checkpoint/scratch.h"

namespace lenscpp {

struct TinyGpt2 {
  std::int64_t d_model = 6, n_layers = 2, d_mlp = 10, d_vocab = 9, n_ctx = 4;
  nlohmann::json config;
  std::map<std::string, Array> tensors;

  explicit TinyGpt2(const std::string& prefix = "transformer.", DType dtype = DType::f32) {
    config = {{"model_type", "gpt2"}, {"n_layer", n_layers}, {"n_head", 2},
              {"n_embd", d_model},    {"n_inner", d_mlp},    {"vocab_size", d_vocab},
              {"n_positions", n_ctx}};
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    auto add = [&](const std::string& name, const Shape& shape) {
      std::vector<double> values(static_cast<std::size_t>(numel(shape)));
      for (double& value : values) value = normal(random);
      tensors[prefix + name] = Array::of(values, shape).to(dtype);
    };
    add("wte.weight", {d_vocab, d_model});
    add("wpe.weight", {n_ctx, d_model});
    for (std::int64_t l = 0; l < n_layers; ++l) {
      std::string h = "h." + std::to_string(l) + ".";
      for (const char* norm : {"ln_1", "ln_2"}) {
        add(h + norm + ".weight", {d_model});
        add(h + norm + ".bias", {d_model});
      }
      add(h + "attn.c_attn.weight", {d_model, 3 * d_model});
      add(h + "attn.c_attn.bias", {3 * d_model});
      add(h + "attn.c_proj.weight", {d_model, d_model});
      add(h + "attn.c_proj.bias", {d_model});
      add(h + "mlp.c_fc.weight", {d_model, d_mlp});
      add(h + "mlp.c_fc.bias", {d_mlp});
      add(h + "mlp.c_proj.weight", {d_mlp, d_model});
      add(h + "mlp.c_proj.bias", {d_model});
    }
    add("ln_f.weight", {d_model});
    add("ln_f.bias", {d_model});
  }

  /// Writes config.json and model.safetensors.
  void write(const std::filesystem::path& folder) const {
    write_file(folder / "config.json", config.dump());
    write_safetensors(folder / "model.safetensors", tensors);
  }
};

/// `array` with one element changed.
inline Array changed(const Array& array, std::int64_t index, double value) {
  MutableArray copy(array);
  copy.set(index, value);
  return std::move(copy).freeze();
}

}  // namespace lenscpp
