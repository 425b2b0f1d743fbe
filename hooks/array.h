// An immutable, contiguous, row-major array on the host that shares its memory: what taps hand to
// sinks, checkers compare and analyses read. Not a tensor library: no arithmetic lives here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hooks/dtype.h"

namespace lenscpp {

using Shape = std::vector<std::int64_t>;

/// Product of the extents; throws std::invalid_argument when one is negative or the product
/// overflows.
std::int64_t numel(const Shape& shape);
/// "[2, 15, 768]".
std::string to_string(const Shape& shape);

/// Immutable host array. Copying copies the handle, not the elements.
class Array {
 public:
  Array() = default;
  /// Wraps `numel(shape)` elements at `data` without a copy; `owner` keeps them alive.
  static Array wrap(const void* data, Shape shape, DType dtype, std::shared_ptr<const void> owner);
  /// Copies `values`; throws std::invalid_argument when their number is not numel(shape).
  static Array of(std::span<const float> values, Shape shape);
  static Array of(std::span<const double> values, Shape shape);
  static Array of(std::span<const std::int64_t> values, Shape shape);

  const Shape& shape() const { return shape_; }
  int rank() const { return static_cast<int>(shape_.size()); }
  /// Extent of a dimension, counted from the end when negative. Throws std::out_of_range.
  std::int64_t size(int dim) const;
  std::int64_t numel() const { return numel_; }
  std::size_t nbytes() const { return static_cast<std::size_t>(numel_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  bool empty() const { return numel_ == 0; }
  const std::byte* bytes() const { return data_; }
  const std::shared_ptr<const void>& owner() const { return owner_; }

  /// The elements as T; throws std::invalid_argument when T is not the dtype.
  template <class T>
  std::span<const T> as() const {
    require_type(sizeof(T), std::is_floating_point_v<T>, std::is_same_v<T, std::uint16_t>);
    return {reinterpret_cast<const T*>(data_), static_cast<std::size_t>(numel_)};
  }

  /// One element, widened exactly (int64 ids beyond 2^53 excepted). Unchecked index.
  double operator[](std::int64_t index) const;
  /// Elements [begin, begin + out.size()) widened exactly to double. Throws std::out_of_range.
  void widen(std::int64_t begin, std::span<double> out) const;
  std::vector<double> to_doubles() const;

  /// A view of rows [begin, end) of the first dimension. Throws std::out_of_range.
  Array rows(std::int64_t begin, std::int64_t end) const;
  /// The same elements under another shape. Throws std::invalid_argument when numel differs.
  Array reshaped(Shape shape) const;
  /// The elements rounded to `dtype` (the same handle when they already are).
  Array to(DType dtype) const;
  /// XXH3-128 of dtype, shape and bytes, in hexadecimal. A guard against accidents, not forgery.
  std::string digest() const;

 private:
  void require_type(std::size_t size, bool floating, bool half) const;

  Shape shape_;
  std::int64_t numel_ = 0;
  DType dtype_ = DType::f32;
  const std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
};

/// An array being written; freeze() turns it into an Array without a copy.
class MutableArray {
 public:
  /// Elements start as zero.
  MutableArray(Shape shape, DType dtype);
  /// A copy of `source` to be changed.
  explicit MutableArray(const Array& source);

  const Shape& shape() const { return shape_; }
  std::int64_t numel() const { return numel_; }
  DType dtype() const { return dtype_; }
  std::byte* bytes() { return bytes_.get(); }
  template <class T>
  T* data() {
    return reinterpret_cast<T*>(bytes_.get());
  }
  double get(std::int64_t index) const;
  /// Stores `value` rounded once to the dtype. Unchecked index.
  void set(std::int64_t index, double value);
  /// Stores values[i] at begin + i, each rounded once. Throws std::out_of_range.
  void store(std::int64_t begin, std::span<const double> values);
  Array freeze() &&;

 private:
  Shape shape_;
  std::int64_t numel_;
  DType dtype_;
  std::shared_ptr<std::byte[]> bytes_;
};

}  // namespace lenscpp
