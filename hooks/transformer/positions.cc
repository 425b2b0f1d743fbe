// Rotary frequencies and ALiBi slopes, as transformers computes them.
#include "hooks/transformer/positions.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace lenscpp {
namespace {

using Numbers = std::vector<double>;

// 1 / base^(2 i / dimensions), through the logarithm.
Numbers plain_frequencies(double base, std::int64_t dimensions) {
  Numbers f;
  for (std::int64_t i = 0; 2 * i < dimensions; ++i)
    f.push_back(
        std::exp(-std::log(base) * static_cast<double>(2 * i) / static_cast<double>(dimensions)));
  return f;
}

// _compute_llama3_parameters.
void rescale_by_wavelength(Numbers& frequencies, const Rope& rope) {
  auto context = static_cast<double>(rope.trained_context);
  for (double& f : frequencies) {
    double wavelength = 2 * M_PI / f;
    if (wavelength < context / rope.high_freq) continue;
    if (wavelength > context / rope.low_freq) {
      f /= rope.factor;
    } else {
      double smooth = (context / wavelength - rope.low_freq) / (rope.high_freq - rope.low_freq);
      f *= (1 - smooth) / rope.factor + smooth;
    }
  }
}

// _compute_yarn_parameters.
void interpolate_slow_pairs(Numbers& frequencies, const Rope& rope, std::int64_t dimensions) {
  auto correction = [&](double rotations) {
    return static_cast<double>(dimensions) *
           std::log(static_cast<double>(rope.trained_context) / (rotations * 2 * M_PI)) /
           (2 * std::log(rope.base));
  };
  double low = correction(rope.beta_fast), high = correction(rope.beta_slow);
  if (rope.truncates) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dimensions) - 1);
  if (low == high) high += 0.001;
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    double extrapolated = 1 - std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] *= (1 - extrapolated) / rope.factor + extrapolated;
  }
}

Numbers frequencies(const Rotary& rotary, const Rope& rope, std::int64_t length) {
  std::int64_t dimensions = rotary.dimensions;
  Numbers f = plain_frequencies(rope.base, dimensions);
  switch (rope.scaling) {
    case RopeScaling::none:
      break;
    case RopeScaling::linear:
      for (double& one : f) one /= rope.factor;
      break;
    case RopeScaling::dynamic: {  // a larger base for what is longer than the trained context
      double beyond = static_cast<double>(std::max(length, rope.trained_context)) /
                      static_cast<double>(rope.trained_context);
      auto d = static_cast<double>(dimensions);
      f = plain_frequencies(
          rope.base * std::pow(rope.factor * beyond - (rope.factor - 1), d / (d - 2)), dimensions);
      break;
    }
    case RopeScaling::llama3:
      rescale_by_wavelength(f, rope);
      break;
    case RopeScaling::yarn:
      interpolate_slow_pairs(f, rope, dimensions);
      break;
  }
  return f;
}

}  // namespace

TurnTables turn_tables(const Rotary& rotary, const Rope& rope,
                       const std::vector<std::int64_t>& positions, DType dtype) {
  Numbers f = frequencies(rotary, rope, 1 + *std::max_element(positions.begin(), positions.end()));
  Shape shape{std::ssize(positions), std::ssize(f)};
  MutableArray cos(shape, dtype), sin(shape, dtype);
  std::int64_t at = 0;
  for (std::int64_t p : positions)
    for (double frequency : f) {
      cos.set(at, rope.attention_factor * std::cos(frequency * static_cast<double>(p)));
      sin.set(at, rope.attention_factor * std::sin(frequency * static_cast<double>(p)));
      ++at;
    }
  return {std::move(cos).freeze(), std::move(sin).freeze()};
}

// build_alibi_tensor: powers of 2^(-8 / n) for the heads up to a power of two n, then odd powers of
// its root.
Array alibi_table(std::int64_t heads, std::int64_t queries, std::int64_t keys,
                  std::int64_t first_query, DType dtype) {
  auto n = static_cast<std::int64_t>(std::exp2(std::floor(std::log2(static_cast<double>(heads)))));
  MutableArray table({heads, queries, keys}, dtype);
  for (std::int64_t h = 0; h < heads; ++h) {
    double exponent = h < n ? static_cast<double>(8 * (h + 1)) / static_cast<double>(n)
                            : static_cast<double>(4 * (2 * (h - n) + 1)) / static_cast<double>(n);
    for (std::int64_t q = 0; q < queries; ++q)
      for (std::int64_t k = 0; k < keys; ++k) {
        auto distance = static_cast<double>(k - q - first_query);
        if (distance <= 0) table.set((h * queries + q) * keys + k, distance * std::exp2(-exponent));
      }
  }
  return std::move(table).freeze();
}

}  // namespace lenscpp
