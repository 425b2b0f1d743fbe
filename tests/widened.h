// Random models of a checkpoint's kinds, larger than what tests/golden holds.
#pragma once

#include <cmath>
#include <random>
#include <string>

#include "hooks/checkpoint/weights.h"

namespace lenscpp::golden {

inline constexpr std::int64_t kFewOutputs = 64;  // of products that are always recomputed

/// Norms, biases, tables and matrices of the sizes that the golden scripts give them.
inline Array random_like(const std::string& name, const Array& like, const Config& c,
                         std::mt19937_64& random) {
  bool matrix = like.rank() == 2 && name.starts_with("blocks.");
  double mean = name.ends_with(".w") && !c.norm_adds_one ? 1 : 0,
         width = matrix ? 1.2 / std::sqrt(static_cast<double>(like.size(0))) : 0.3;
  std::normal_distribution<double> values(mean, width);
  MutableArray result(like.shape(), like.dtype());
  for (std::int64_t i = 0; i < like.numel(); ++i) result.set(i, values(random));
  return std::move(result).freeze();
}

/// A random model of the same kinds, wide enough for checksums, in float64.
inline Weights widened(Config c, std::mt19937_64& random) {
  std::int64_t factor = kFewOutputs / (c.n_kv_heads * c.d_head) + 1;
  c.n_heads *= factor, c.n_kv_heads *= factor;
  c.d_model = 72, c.d_mlp = 100, c.d_vocab = 150;
  Weights w = outline(c, DType::f64);
  w.for_each([&](const std::string& name, const Array& array) {
    const_cast<Array&>(array) = random_like(name, array, c, random);  // of w, which is not const
  });
  if (c.tied_unembedding) w.W_U = w.W_E;
  return w;
}

}  // namespace lenscpp::golden
