// Element types of arrays, and their exact conversions. Free of torch and Eigen.
#pragma once

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

/// Bit patterns to values; every bfloat16 and float16 is exactly a float.
float bf16_to_float(std::uint16_t bits);
float f16_to_float(std::uint16_t bits);
/// Values to bit patterns, one rounding to nearest even straight from double.
std::uint16_t double_to_bf16(double value);
std::uint16_t double_to_f16(double value);
/// `value` rounded once to `dtype` (to nearest even), as a double.
double round_to(DType dtype, double value);

}  // namespace lenscpp
