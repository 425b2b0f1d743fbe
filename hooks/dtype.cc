// Element types: sizes, names and exact conversions.
#include "hooks/dtype.h"

#include <cmath>
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
    case DType::f32:
      return f32;
    case DType::f64:
      return f64;
    case DType::bf16:
      return bf16;
    case DType::f16:
      return f16;
    case DType::i64:
      return i64;
  }
  throw std::logic_error("[dtype] not a DType");
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

std::string_view name_of(MatmulPrecision precision) {
  switch (precision) {
    case MatmulPrecision::ieee:
      return "ieee";
    case MatmulPrecision::tf32:
      return "tf32";
  }
  throw std::logic_error("[dtype] not a MatmulPrecision");
}

MatmulPrecision matmul_precision_from_name(std::string_view name) {
  for (MatmulPrecision precision : {MatmulPrecision::ieee, MatmulPrecision::tf32})
    if (name_of(precision) == name) return precision;
  throw std::invalid_argument("[matmul_precision] \"" + std::string(name) +
                              "\" is not a precision; allowed: ieee, tf32");
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

double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::f64:
      return value;
    case DType::f32:
      return static_cast<double>(static_cast<float>(value));
    case DType::bf16:
      return bf16_to_float(double_to_bf16(value));
    case DType::f16:
      return f16_to_float(double_to_f16(value));
    case DType::i64:
      return std::nearbyint(value);
  }
  throw std::logic_error("[dtype] not a DType");
}

}  // namespace lenscpp
