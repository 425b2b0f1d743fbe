// Element types of arrays, and their exact conversions. Free of torch and Eigen.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lenscpp {

/// Element type of an Array. `i64` holds token ids, the rest hold activations and weights.
enum class DType : std::uint8_t { f32, f64, bf16, f16, i64 };

/// Bytes of one element.
std::size_t size_of(DType dtype);
/// "float32", "float64", "bfloat16", "float16", "int64".
std::string_view name_of(DType dtype);
/// The inverse of name_of. Throws std::invalid_argument naming what is allowed.
DType dtype_from_name(std::string_view name);

/// Unit roundoff u: half the distance from 1 to the next larger number (Higham 2002, section 2.1).
double unit_roundoff(DType dtype);
/// The smallest positive normal number: devices may flush what is below to zero.
double smallest_normal(DType dtype);
/// What products are accumulated in: float64 for float64, float32 for everything narrower.
DType accumulate_type(DType dtype);

/// What a device may do to the operands of a float32 product before it multiplies them: nothing, or
/// round them to TF32's 11 significant bits.
enum class MatmulPrecision : std::uint8_t { ieee, tf32 };
/// "ieee", "tf32".
std::string_view name_of(MatmulPrecision precision);
/// The inverse of name_of. Throws std::invalid_argument naming what is allowed.
MatmulPrecision matmul_precision_from_name(std::string_view name);

/// Bit patterns to values; every bfloat16 and float16 is exactly a float. Inline: loops over
/// weights.
inline float bf16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
inline float f16_to_float(std::uint16_t bits) {
  std::uint32_t sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 0x1fu,
                fraction = bits & 0x3ffu;
  std::uint32_t rebased = exponent == 0x1f ? 0xffu : exponent + 112;
  std::uint32_t normal = rebased << 23 | fraction << 13;
  std::uint32_t subnormal = std::bit_cast<std::uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
  return std::bit_cast<float>(sign | (exponent == 0 ? subnormal : normal));
}

namespace detail {
// `value` in a 16-bit format of `mantissa_bits` stored bits, rounded once to nearest even. Integers
// only: whether this processor flushes subnormals or rounds otherwise does not matter.
template <int mantissa_bits>
constexpr std::uint16_t narrow(double value) {
  constexpr int exponent_bits = 15 - mantissa_bits, dropped = 52 - mantissa_bits;
  constexpr int rebase = 1023 - ((1 << (exponent_bits - 1)) - 1);  // difference of the biases
  constexpr std::uint64_t infinity = ((std::uint64_t{1} << exponent_bits) - 1) << mantissa_bits;
  auto bits = std::bit_cast<std::uint64_t>(value);
  auto sign = static_cast<std::uint16_t>(bits >> 48 & 0x8000u);
  bits &= 0x7fffffffffffffffu;
  if (bits > 0x7ff0000000000000u)  // one quiet NaN for all
    return static_cast<std::uint16_t>(infinity | std::uint64_t{1} << (mantissa_bits - 1));
  int exponent =
      static_cast<int>(bits >> 52) - rebase;  // biased as in the target; < 1: subnormal there
  int shift = dropped;
  if (exponent >= 1) {
    bits -= static_cast<std::uint64_t>(rebase) << 52;
  } else {
    shift += 1 - exponent;
    if (shift > 54) return sign;  // below half of the smallest
    bits = (bits & 0xfffffffffffffu) | std::uint64_t{1} << 52;
  }
  std::uint64_t even = bits >> shift & 1;
  std::uint64_t rounded = (bits + (std::uint64_t{1} << (shift - 1)) - 1 + even) >> shift;
  return static_cast<std::uint16_t>(sign | (rounded < infinity ? rounded : infinity));
}
}  // namespace detail

/// Values to bit patterns, one rounding to nearest even straight from double; every NaN becomes
/// one.
inline std::uint16_t double_to_bf16(double value) { return detail::narrow<7>(value); }
inline std::uint16_t double_to_f16(double value) { return detail::narrow<10>(value); }
/// `value` rounded once to `dtype` (to nearest even), as a double.
double round_to(DType dtype, double value);

}  // namespace lenscpp
