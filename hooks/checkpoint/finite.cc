// Exponents of all ones, found in blocks so that the inner loop has no branch and vectorises.
#include "hooks/checkpoint/finite.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <type_traits>

namespace lenscpp {
namespace {

template <class Bits>
std::optional<std::int64_t> first_with_exponent(const Array& array, Bits exponent) {
  const auto* bits = reinterpret_cast<const Bits*>(array.bytes());
  constexpr std::int64_t kBlock = 1 << 14;
  for (std::int64_t begin = 0; begin < array.numel(); begin += kBlock) {
    std::int64_t end = std::min(begin + kBlock, array.numel());
    Bits any = 0;
    for (std::int64_t i = begin; i < end; ++i)
      any |= static_cast<Bits>((bits[i] & exponent) == exponent);
    if (any == 0) continue;
    for (std::int64_t i = begin; i < end; ++i)
      if ((bits[i] & exponent) == exponent) return i;
  }
  return std::nullopt;
}

std::string coordinates(const Array& array, std::int64_t index) {
  Shape place = array.shape();
  for (std::size_t dim = place.size(); dim-- > 0;) {
    std::int64_t extent = array.shape()[dim];
    place[dim] = index % extent;
    index /= extent;
  }
  return to_string(place);
}

}  // namespace

std::optional<std::int64_t> first_not_finite(const Array& array) {
  switch (array.dtype()) {
    case DType::f32:
      return first_with_exponent<std::uint32_t>(array, 0x7f800000u);
    case DType::f64:
      return first_with_exponent<std::uint64_t>(array, 0x7ff0000000000000u);
    case DType::bf16:
      return first_with_exponent<std::uint16_t>(array, 0x7f80u);
    case DType::f16:
      return first_with_exponent<std::uint16_t>(array, 0x7c00u);
    case DType::i64:
      return std::nullopt;
  }
  throw std::logic_error("[weights] not a DType");
}

void require_finite(const Array& array, const std::string& where, const std::string& hint) {
  auto index = first_not_finite(array);
  if (!index) return;
  double value = array[*index];
  throw std::invalid_argument(where + " holds " +
                              (std::isnan(value) ? "a NaN"
                               : value > 0       ? "+inf"
                                                 : "-inf") +
                              " at " + coordinates(array, *index) + "; finite numbers are allowed" +
                              hint);
}

}  // namespace lenscpp
