// Arrays: sharing, widening, rounding, and every refusal.
#include "hooks/array.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace lenscpp {
namespace {

std::vector<double> counting(int n) {
  std::vector<double> values(static_cast<std::size_t>(n));
  std::iota(values.begin(), values.end(), -3.0);
  return values;
}

TEST(Shape, NumelIsTheProductAndOneForScalars) {
  EXPECT_EQ(numel({}), 1);
  EXPECT_EQ(numel({2, 15, 768}), 2 * 15 * 768);
  EXPECT_EQ(numel({3, 0, 5}), 0);
}

TEST(Shape, NegativeAndOverflowingExtentsAreRefused) {
  EXPECT_THROW(numel({-1}), std::invalid_argument);
  EXPECT_THROW(numel({2, -3}), std::invalid_argument);
  EXPECT_THROW(numel({std::int64_t{1} << 32, std::int64_t{1} << 32}), std::invalid_argument);
  EXPECT_THROW(numel({std::numeric_limits<std::int64_t>::max()}),
               std::invalid_argument);  // in bytes
}

TEST(Shape, IsPrintedInBrackets) {
  EXPECT_EQ(to_string(Shape{2, 15, 768}), "[2, 15, 768]");
  EXPECT_EQ(to_string(Shape{}), "[]");
}

TEST(Array, ADefaultArrayIsEmpty) {
  Array array;
  EXPECT_TRUE(array.empty());
  EXPECT_EQ(array.nbytes(), 0u);
  EXPECT_TRUE(array.to_doubles().empty());
}

TEST(Array, OfCopiesItsValues) {
  std::vector<float> values{1, 2, 3, 4, 5, 6};
  Array array = Array::of(values, {2, 3});
  values[0] = 99;
  EXPECT_EQ(array[0], 1);
  EXPECT_EQ(array[5], 6);
  EXPECT_EQ(array.dtype(), DType::f32);
  EXPECT_EQ(array.nbytes(), 24u);
  EXPECT_EQ(Array::of(std::vector<std::int64_t>{7, 8}, {2}).dtype(), DType::i64);
}

TEST(Array, OfRefusesAnotherNumberOfValues) {
  EXPECT_THROW(Array::of(std::vector<double>{1, 2, 3}, {2, 2}), std::invalid_argument);
}

TEST(Array, WrapSharesMemoryAndKeepsItsOwnerAlive) {
  auto owner = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4});
  std::weak_ptr<std::vector<float>> watch = owner;
  Array array = Array::wrap(owner->data(), {4}, DType::f32, owner);
  EXPECT_EQ(array.bytes(), reinterpret_cast<const std::byte*>(owner->data()));
  owner.reset();
  Array row = array.rows(1, 2).reshaped({});
  array = Array();
  EXPECT_FALSE(watch.expired());
  EXPECT_EQ(row[0], 2);
  row = Array();
  EXPECT_TRUE(watch.expired());
}

TEST(Array, SizeCountsFromBothEnds) {
  Array array = Array::of(counting(6), {2, 3});
  EXPECT_EQ(array.size(0), 2);
  EXPECT_EQ(array.size(-1), 3);
  EXPECT_THROW(array.size(2), std::out_of_range);
  EXPECT_THROW(array.size(-3), std::out_of_range);
}

TEST(Array, IsReadAsItsOwnTypeOnly) {
  EXPECT_EQ(Array::of(counting(2), {2}).as<double>()[1], -2);
  EXPECT_THROW(Array::of(counting(2), {2}).as<float>(), std::invalid_argument);
  EXPECT_THROW(Array::of(counting(2), {2}).as<std::int64_t>(), std::invalid_argument);
  EXPECT_THROW(Array::of(std::vector<std::int64_t>{1}, {1}).as<double>(), std::invalid_argument);
  EXPECT_THROW(Array::of(std::vector<float>{1}, {1}).as<std::int32_t>(), std::invalid_argument);
  Array half = Array::of(counting(2), {2}).to(DType::bf16);
  EXPECT_EQ(half.as<std::uint16_t>()[1], 0xc000);
  EXPECT_THROW(half.as<std::int16_t>(), std::invalid_argument);
}

TEST(Array, WidenReadsAnyRangeOfAnyDtypeExactly) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64}) {
    Array array = Array::of(counting(9), {9}).to(dtype);
    std::vector<double> part(4);
    array.widen(3, part);
    EXPECT_EQ(part, (std::vector<double>{0, 1, 2, 3})) << name_of(dtype);
    EXPECT_EQ(array.to_doubles(), counting(9)) << name_of(dtype);
    for (std::int64_t i = 0; i < 9; ++i) EXPECT_EQ(array[i], static_cast<double>(i - 3));
    EXPECT_THROW(array.widen(6, part), std::out_of_range);
    EXPECT_THROW(array.widen(-1, part), std::out_of_range);
    array.widen(9, std::span<double>());
  }
}

TEST(Array, RowsAreAView) {
  Array array = Array::of(counting(12), {4, 3});
  Array middle = array.rows(1, 3);
  EXPECT_EQ(middle.shape(), (Shape{2, 3}));
  EXPECT_EQ(middle.bytes(), array.bytes() + 24);
  EXPECT_EQ(middle[0], 0);
  EXPECT_TRUE(array.rows(4, 4).empty());
  EXPECT_THROW(array.rows(2, 5), std::out_of_range);
  EXPECT_THROW(array.rows(2, 1), std::out_of_range);
  EXPECT_THROW(array.rows(-1, 1), std::out_of_range);
  EXPECT_THROW(Array::of(std::vector<float>{1}, {}).rows(0, 1), std::out_of_range);
}

TEST(Array, ReshapedKeepsTheElements) {
  Array array = Array::of(counting(12), {4, 3});
  EXPECT_EQ(array.reshaped({2, 6}).bytes(), array.bytes());
  EXPECT_THROW(array.reshaped({5}), std::invalid_argument);
}

TEST(Array, ToRoundsOnceAndCopiesNothingWhenItNeedNot) {
  Array array = Array::of(std::vector<double>{1 + 0x1p-8 + 0x1p-40, 70000, -0.0}, {3});
  EXPECT_EQ(array.to(DType::f64).bytes(), array.bytes());
  Array bf16 = array.to(DType::bf16);
  EXPECT_EQ(bf16[0], 1 + 0x1p-7);
  EXPECT_TRUE(std::isinf(array.to(DType::f16)[1]));
  EXPECT_TRUE(std::signbit(bf16[2]));
}

TEST(Array, ToConvertsMoreThanOneChunk) {
  std::vector<double> values(10'001);
  std::iota(values.begin(), values.end(), 0.0);
  EXPECT_EQ(Array::of(values, {10'001}).to(DType::f32).to_doubles(), values);
}

TEST(Array, IntegersRefuseWhatTheyCannotHold) {
  for (double value :
       {std::nan(""), 1e300, -1e300, 0x1p63, std::numeric_limits<double>::infinity()})
    EXPECT_THROW(Array::of(std::vector<double>{value}, {1}).to(DType::i64), std::invalid_argument)
        << value;
  EXPECT_EQ(Array::of(std::vector<double>{-0x1p63}, {1}).to(DType::i64).as<std::int64_t>()[0],
            std::numeric_limits<std::int64_t>::min());
}

TEST(Array, DigestDependsOnBytesShapeAndDtypeAlone) {
  Array array = Array::of(counting(6), {2, 3});
  EXPECT_EQ(array.digest(), Array::of(counting(6), {2, 3}).digest());
  EXPECT_EQ(array.digest().size(), 32u);
  EXPECT_NE(array.digest(), array.reshaped({3, 2}).digest());
  EXPECT_NE(array.digest(), array.to(DType::f32).digest());
  MutableArray changed(array);
  changed.set(5, 3);
  EXPECT_NE(array.digest(), std::move(changed).freeze().digest());
  // The same bytes under another dtype.
  MutableArray zero16({2}, DType::f16), zero_bf({2}, DType::bf16);
  EXPECT_NE(std::move(zero16).freeze().digest(), std::move(zero_bf).freeze().digest());
}

TEST(MutableArray, StartsAsZeroAlignedForVectorInstructions) {
  for (std::int64_t n : {0, 1, 7, 100'000}) {
    MutableArray array({n}, DType::f32);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(array.bytes()) % 64, 0u);
    for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(array.get(i), 0);
  }
}

TEST(MutableArray, ACopyLeavesItsSourceAlone) {
  Array source = Array::of(counting(3), {3});
  MutableArray copy(source);
  copy.set(0, 42);
  EXPECT_EQ(source[0], -3);
  EXPECT_EQ(copy.get(0), 42);
}

TEST(MutableArray, StoreRoundsOnceAndRefusesToWriteOutside) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64}) {
    MutableArray array({4}, dtype);
    std::vector<double> values{1.5, 2.5};
    array.store(2, values);
    EXPECT_EQ(array.get(3), round_to(dtype, 2.5)) << name_of(dtype);
    EXPECT_EQ(array.get(1), 0);
    EXPECT_THROW(array.store(3, values), std::out_of_range);
    EXPECT_THROW(array.store(-1, values), std::out_of_range);
  }
}

TEST(MutableArray, FreezeHandsItsMemoryOn) {
  MutableArray array({2, 2}, DType::f64);
  const std::byte* address = array.bytes();
  array.set(3, 7);
  Array frozen = std::move(array).freeze();
  EXPECT_EQ(frozen.bytes(), address);
  EXPECT_EQ(frozen.shape(), (Shape{2, 2}));
  EXPECT_EQ(frozen[3], 7);
}

}  // namespace
}  // namespace lenscpp
