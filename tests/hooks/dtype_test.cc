// Conversions against their definition: every 16-bit pattern, every midpoint between two of them
// and its neighbours.
#include "hooks/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

namespace lenscpp {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Half {
  const char* name;
  DType dtype;
  int mantissa_bits, bias;
  float (*widen)(std::uint16_t);
  std::uint16_t (*narrow)(double);
};

// IEEE 754-2019, section 3.4: the value of a pattern, from its fields.
double value_of(const Half& format, std::uint16_t bits) {
  const int exponent_bits = 15 - format.mantissa_bits;
  int exponent = bits >> format.mantissa_bits & ((1 << exponent_bits) - 1);
  int fraction = bits & ((1 << format.mantissa_bits) - 1);
  double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return fraction == 0 ? sign * kInf : kNaN;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - format.bias - format.mantissa_bits);
  return sign * std::ldexp((1 << format.mantissa_bits) + fraction,
                           exponent - format.bias - format.mantissa_bits);
}

class HalfTest : public testing::TestWithParam<Half> {
 protected:
  std::uint16_t infinity() const {
    return static_cast<std::uint16_t>(((1 << (15 - GetParam().mantissa_bits)) - 1)
                                      << GetParam().mantissa_bits);
  }
};

TEST_P(HalfTest, EveryPatternWidensToItsValue) {
  for (int i = 0; i < 65536; ++i) {
    auto bits = static_cast<std::uint16_t>(i);
    double expected = value_of(GetParam(), bits), found = GetParam().widen(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(found)) << i;
    } else {
      ASSERT_EQ(found, expected) << i;
      ASSERT_EQ(std::signbit(found), std::signbit(expected)) << i;
    }
  }
}

TEST_P(HalfTest, EveryPatternSurvivesARoundTrip) {
  for (int i = 0; i < 65536; ++i) {
    auto bits = static_cast<std::uint16_t>(i);
    double value = GetParam().widen(bits);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(value)))) << i;
    } else {
      ASSERT_EQ(GetParam().narrow(value), bits) << i;
      ASSERT_EQ(round_to(GetParam().dtype, value), value) << i;
    }
  }
}

TEST_P(HalfTest, EveryMidpointRoundsToEvenAndItsNeighboursToTheNearer) {
  for (int i = 0; i < infinity() - 1; ++i) {
    auto low = static_cast<std::uint16_t>(i), high = static_cast<std::uint16_t>(i + 1);
    double middle = (value_of(GetParam(), low) + value_of(GetParam(), high)) / 2;  // exact
    std::uint16_t even = i % 2 == 0 ? low : high;
    for (int sign : {0, 0x8000}) {
      double s = sign ? -1 : 1;
      ASSERT_EQ(GetParam().narrow(s * middle), even | sign) << i;
      ASSERT_EQ(GetParam().narrow(s * std::nextafter(middle, 0)), low | sign) << i;
      ASSERT_EQ(GetParam().narrow(s * std::nextafter(middle, kInf)), high | sign) << i;
    }
  }
}

TEST_P(HalfTest, OverflowsToInfinityFromHalfAUnitBeyondTheLargestOn) {
  auto largest = static_cast<std::uint16_t>(infinity() - 1);
  double top = value_of(GetParam(), largest);
  double unit = top - value_of(GetParam(), static_cast<std::uint16_t>(largest - 1));
  EXPECT_EQ(GetParam().narrow(std::nextafter(top + unit / 2, 0)), largest);
  for (double value : {top + unit / 2, 2 * top, 1e300, std::numeric_limits<double>::max(), kInf}) {
    EXPECT_EQ(GetParam().narrow(value), infinity()) << value;
    EXPECT_EQ(GetParam().narrow(-value), infinity() | 0x8000) << value;
    EXPECT_EQ(round_to(GetParam().dtype, -value), -kInf);
  }
}

TEST_P(HalfTest, UnderflowsToASignedZero) {
  double smallest = value_of(GetParam(), 1);
  for (double value : {smallest / 2, smallest / 4, 1e-200, 5e-324, 0.0}) {
    EXPECT_EQ(GetParam().narrow(value), 0) << value;
    EXPECT_EQ(GetParam().narrow(-value), 0x8000) << value;
  }
  EXPECT_EQ(GetParam().narrow(std::nextafter(smallest / 2, 1)), 1);
}

TEST_P(HalfTest, KeepsNaN) {
  EXPECT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(kNaN))));
  EXPECT_TRUE(std::isnan(GetParam().widen(GetParam().narrow(-kNaN))));
  // A payload in the low bits only must not become an infinity.
  EXPECT_TRUE(std::isnan(GetParam().widen(
      GetParam().narrow(std::bit_cast<double>(std::uint64_t{0x7ff0000000000001})))));
  EXPECT_TRUE(std::isnan(round_to(GetParam().dtype, kNaN)));
}

TEST_P(HalfTest, RoundsOnceNotByWayOfFloat) {
  // Just above a midpoint by less than a float shows: by way of float this becomes a tie.
  double one = 1, unit = std::ldexp(1.0, -GetParam().mantissa_bits);
  double value = one + unit / 2 + std::ldexp(1.0, -40);
  ASSERT_EQ(static_cast<double>(static_cast<float>(value)), one + unit / 2);
  EXPECT_EQ(round_to(GetParam().dtype, value), one + unit);
}

INSTANTIATE_TEST_SUITE_P(
    Formats, HalfTest,
    testing::Values(Half{"bfloat16", DType::bf16, 7, 127, bf16_to_float, double_to_bf16},
                    Half{"float16", DType::f16, 10, 15, f16_to_float, double_to_f16}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(DType, NamesComeBack) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64})
    EXPECT_EQ(dtype_from_name(name_of(dtype)), dtype);
}

TEST(DType, AnUnknownNameIsRefusedWithWhatIsAllowed) {
  for (const char* name : {"", "float", "FLOAT32", "fp16", "int8", "float32 "}) try {
      dtype_from_name(name);
      ADD_FAILURE() << name;
    } catch (const std::invalid_argument& error) {
      EXPECT_NE(std::string(error.what()).find("bfloat16"), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
}

TEST(DType, SizesRoundoffsAndSmallestNormalsAreTheFormats) {
  EXPECT_EQ(size_of(DType::f32), 4u);
  EXPECT_EQ(size_of(DType::f64), 8u);
  EXPECT_EQ(size_of(DType::bf16), 2u);
  EXPECT_EQ(size_of(DType::f16), 2u);
  EXPECT_EQ(size_of(DType::i64), 8u);
  EXPECT_EQ(unit_roundoff(DType::f32), std::numeric_limits<float>::epsilon() / 2);
  EXPECT_EQ(unit_roundoff(DType::f64), std::numeric_limits<double>::epsilon() / 2);
  EXPECT_EQ(unit_roundoff(DType::bf16), 0x1p-8);
  EXPECT_EQ(unit_roundoff(DType::f16), 0x1p-11);
  EXPECT_EQ(unit_roundoff(DType::i64), 0);
  EXPECT_EQ(smallest_normal(DType::f32), std::numeric_limits<float>::min());
  EXPECT_EQ(smallest_normal(DType::f64), std::numeric_limits<double>::min());
  EXPECT_EQ(smallest_normal(DType::bf16), 0x1p-126);
  EXPECT_EQ(smallest_normal(DType::f16), 0x1p-14);
}

TEST(DType, OnlyFloat64AccumulatesInFloat64) {
  EXPECT_EQ(accumulate_type(DType::f64), DType::f64);
  for (DType dtype : {DType::f32, DType::bf16, DType::f16})
    EXPECT_EQ(accumulate_type(dtype), DType::f32);
}

TEST(DType, RoundToFloat32AndFloat64AreTheCasts) {
  EXPECT_EQ(round_to(DType::f32, 0.1), static_cast<double>(0.1f));
  EXPECT_EQ(round_to(DType::f32, 1e39), kInf);
  EXPECT_EQ(round_to(DType::f64, 0.1), 0.1);
  EXPECT_EQ(round_to(DType::i64, 2.5), 2);
}

}  // namespace
}  // namespace lenscpp
