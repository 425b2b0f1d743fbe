// Angles and slopes, from their papers' formulas.
#include "verify/reference/positions.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace lenscpp {
namespace {

// The pair at which an angle turns `rotations` times within the trained context (arXiv 2309.00071,
// section 3.2).
double pair_turning(double rotations, const Rope& rope, std::int64_t dimensions) {
  double context = static_cast<double>(rope.trained_context);
  return static_cast<double>(dimensions) * std::log(context / (rotations * 2 * M_PI)) /
         (2 * std::log(rope.base));
}

// 0 below the first pair, 1 above the last: how much of the frequency is interpolated.
double yarn_ramp(double pair, const Rope& rope, std::int64_t dimensions) {
  double low = pair_turning(rope.beta_fast, rope, dimensions),
         high = pair_turning(rope.beta_slow, rope, dimensions);
  if (rope.truncates) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(dimensions - 1));
  if (low == high) high += 0.001;
  return std::clamp((pair - low) / (high - low), 0.0, 1.0);
}

// Long wavelengths are stretched, short ones are not, and those between a little.
double llama3(double frequency, const Rope& rope) {
  double turned = static_cast<double>(rope.trained_context) * frequency / (2 * M_PI);
  if (turned > rope.high_freq) return frequency;
  if (turned < rope.low_freq) return frequency / rope.factor;
  double smooth = (turned - rope.low_freq) / (rope.high_freq - rope.low_freq);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

double frequency_of(std::int64_t pair, const Rotary& rotary, const Rope& rope,
                    std::int64_t length) {
  auto n = static_cast<double>(rotary.dimensions);
  double share = -2 * static_cast<double>(pair) / n, frequency = std::pow(rope.base, share);
  switch (rope.scaling) {
    case RopeScaling::none:
      return frequency;
    case RopeScaling::linear:
      return frequency / rope.factor;
    case RopeScaling::dynamic: {
      double context = static_cast<double>(rope.trained_context),
             reached = std::max(static_cast<double>(length), context);
      double stretched = rope.factor * reached / context - (rope.factor - 1);
      return std::pow(rope.base * std::pow(stretched, n / (n - 2)), share);
    }
    case RopeScaling::llama3:
      return llama3(frequency, rope);
    case RopeScaling::yarn: {
      double ramp = yarn_ramp(static_cast<double>(pair), rope, rotary.dimensions);
      return frequency / rope.factor * ramp + frequency * (1 - ramp);
    }
  }
  throw std::logic_error("[positions] not a RopeScaling");
}

}  // namespace

Turns turns(const Rotary& rotary, const Rope& rope, std::span<const std::int64_t> positions,
            std::int64_t pos) {
  std::int64_t pairs = rotary.dimensions / 2, count = std::ssize(positions);
  MutableArray cos({count, pairs}, DType::f64), sin({count, pairs}, DType::f64);
  for (std::int64_t first = 0; first < count; first += pos) {
    auto prompt = positions.subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(pos));
    std::int64_t length = *std::ranges::max_element(prompt) + 1;
    for (std::int64_t i = 0; i < pairs; ++i) {
      double frequency = frequency_of(i, rotary, rope, length);
      for (std::int64_t p = 0; p < pos; ++p) {
        double angle = static_cast<double>(prompt[static_cast<std::size_t>(p)]) * frequency;
        cos.set((first + p) * pairs + i, std::cos(angle) * rope.attention_factor);
        sin.set((first + p) * pairs + i, std::sin(angle) * rope.attention_factor);
      }
    }
  }
  return {std::move(cos).freeze(), std::move(sin).freeze()};
}

// Slopes 2^(-8 i / n) for n a power of two; the heads beyond take every other one of those of 2 n.
Array alibi_slopes(std::int64_t heads) {
  std::int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  MutableArray slopes({heads}, DType::f64);
  for (std::int64_t h = 0; h < heads; ++h) {
    double step = h < power ? static_cast<double>(h + 1) : static_cast<double>(h - power) + 0.5;
    slopes.set(h, std::pow(2.0, -8.0 * step / static_cast<double>(power)));
  }
  return std::move(slopes).freeze();
}

}  // namespace lenscpp
