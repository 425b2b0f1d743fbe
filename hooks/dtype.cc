// Element types: sizes, names and exact conversions.
#include "hooks/dtype.h"

#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace lenscpp {
namespace {

struct Format {
  std::string_view name;
  std::size_t size;
  int significand_bits;  // with the implicit one; 0 for integers
  int min_exponent;      // of the smallest normal number
};

const Format& format(DType dtype) {
  static constexpr Format f32{"float32", 4, 24, -126};
  static constexpr Format f64{"float64", 8, 53, -1022};
  static constexpr Format bf16{"bfloat16", 2, 8, -126};
  static constexpr Format f16{"float16", 2, 11, -14};
  static constexpr Format i64{"int64", 8, 0, 0};
  switch (dtype) {
    case DType::f32: return f32;
    case DType::f64: return f64;
    case DType::bf16: return bf16;
    case DType::f16: return f16;
    case DType::i64: return i64;
  }
  throw std::logic_error("[dtype] not a DType");
}

// Rounds to `bits` significand bits at exponents >= min_exponent, to nearest even. Scaling by powers
// of two and nearbyint are exact, so there is one rounding.
double round_significand(double value, int bits, int min_exponent, double largest) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent = std::max(std::ilogb(value), min_exponent);
  double unit = std::ldexp(1.0, exponent - bits + 1);
  double rounded = std::nearbyint(value / unit) * unit;
  return std::abs(rounded) > largest ? std::copysign(std::numeric_limits<double>::infinity(), value)
                                     : rounded;
}

}  // namespace

std::size_t size_of(DType dtype) { return format(dtype).size; }
std::string_view name_of(DType dtype) { return format(dtype).name; }

DType dtype_from_name(std::string_view name) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64})
    if (format(dtype).name == name) return dtype;
  throw std::invalid_argument("[dtype] \"" + std::string(name) +
                              "\" is not a dtype; allowed: float32, float64, bfloat16, float16");
}

double unit_roundoff(DType dtype) {
  int bits = format(dtype).significand_bits;
  return bits == 0 ? 0.0 : std::ldexp(1.0, -bits);
}

double smallest_normal(DType dtype) {
  const Format& f = format(dtype);
  return f.significand_bits == 0 ? 0.0 : std::ldexp(1.0, f.min_exponent);
}

DType accumulate_type(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

float f16_to_float(std::uint16_t bits) {
  std::uint32_t sign = (bits & 0x8000u) << 16;
  std::uint32_t exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                  : std::bit_cast<float>(((exponent + 112) << 23) | (fraction << 13));
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

std::uint16_t double_to_bf16(double value) {
  if (std::isnan(value)) return 0x7fc0;
  float rounded = static_cast<float>(round_to(DType::bf16, value));
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(rounded) >> 16);
}

std::uint16_t double_to_f16(double value) {
  if (std::isnan(value)) return 0x7e00;
  double rounded = round_to(DType::f16, value);
  std::uint16_t sign = std::signbit(rounded) ? 0x8000 : 0;
  double magnitude = std::abs(rounded);
  if (std::isinf(magnitude)) return sign | 0x7c00;
  if (magnitude < 0x1p-14) return sign | static_cast<std::uint16_t>(std::ldexp(magnitude, 24));
  int exponent = std::ilogb(magnitude);
  auto fraction = static_cast<std::uint16_t>(std::ldexp(magnitude, 10 - exponent)) & 0x3ff;
  return sign | static_cast<std::uint16_t>((exponent + 15) << 10) | fraction;
}

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::f64: return value;
    case DType::f32: return static_cast<double>(static_cast<float>(value));
    case DType::bf16: return round_significand(value, 8, -126, 0x1.fep127);
    case DType::f16: return round_significand(value, 11, -14, 65504.0);
    case DType::i64: return std::nearbyint(value);
  }
  throw std::logic_error("[dtype] not a DType");
}

}  // namespace lenscpp
