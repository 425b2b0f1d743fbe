// Immutable host arrays.
#include "hooks/array.h"

// Compiled here for this processor: the library's own code is half as fast.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

namespace lenscpp {
namespace {

template <class T>
Array copied(std::span<const T> values, Shape shape, DType dtype) {
  MutableArray result(std::move(shape), dtype);
  if (result.numel() != static_cast<std::int64_t>(values.size()))
    throw std::invalid_argument("[array] shape " + to_string(result.shape()) + " holds " +
                                std::to_string(result.numel()) + " elements, " +
                                std::to_string(values.size()) + " were given");
  if (!values.empty()) std::memcpy(result.bytes(), values.data(), values.size_bytes());
  return std::move(result).freeze();
}

double load(const std::byte* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::f32:
      return reinterpret_cast<const float*>(data)[index];
    case DType::f64:
      return reinterpret_cast<const double*>(data)[index];
    case DType::bf16:
      return bf16_to_float(reinterpret_cast<const std::uint16_t*>(data)[index]);
    case DType::f16:
      return f16_to_float(reinterpret_cast<const std::uint16_t*>(data)[index]);
    case DType::i64:
      return static_cast<double>(reinterpret_cast<const std::int64_t*>(data)[index]);
  }
  throw std::logic_error("[array] not a DType");
}

}  // namespace

std::int64_t numel(const Shape& shape) {
  std::int64_t product = 1;
  for (std::int64_t extent : shape)
    if (extent < 0 || __builtin_mul_overflow(product, extent, &product) ||
        product > std::numeric_limits<std::int64_t>::max() / 8)
      throw std::invalid_argument("[array] shape " + to_string(shape) +
                                  " is negative or too large to address");
  return product;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

Array Array::wrap(const void* data, Shape shape, DType dtype, std::shared_ptr<const void> owner) {
  Array array;
  array.numel_ = lenscpp::numel(shape);
  array.shape_ = std::move(shape);
  array.dtype_ = dtype;
  array.data_ = static_cast<const std::byte*>(data);
  array.owner_ = std::move(owner);
  return array;
}

Array Array::of(std::span<const float> v, Shape s) { return copied(v, std::move(s), DType::f32); }
Array Array::of(std::span<const double> v, Shape s) { return copied(v, std::move(s), DType::f64); }
Array Array::of(std::span<const std::int64_t> v, Shape s) {
  return copied(v, std::move(s), DType::i64);
}

std::int64_t Array::size(int dim) const {
  int index = dim < 0 ? dim + rank() : dim;
  if (index < 0 || index >= rank())
    throw std::out_of_range("[array] dimension " + std::to_string(dim) + " of an array of shape " +
                            to_string(shape_));
  return shape_[static_cast<std::size_t>(index)];
}

void Array::require_type(std::size_t size, bool floating, bool half) const {
  bool is_half = dtype_ == DType::bf16 || dtype_ == DType::f16;
  if (size != size_of(dtype_) || half != is_half || (!half && floating == (dtype_ == DType::i64)))
    throw std::invalid_argument("[array] read as another type than " +
                                std::string(name_of(dtype_)));
}

double Array::operator[](std::int64_t index) const { return load(data_, dtype_, index); }

void Array::widen(std::int64_t begin, std::span<double> out) const {
  auto n = static_cast<std::int64_t>(out.size());
  if (begin < 0 || begin > numel_ - n)
    throw std::out_of_range("[array] elements " + std::to_string(begin) + " to " +
                            std::to_string(begin + n) + " of " + std::to_string(numel_));
  // One branch a call, so that the loops vectorise.
  switch (dtype_) {
    case DType::f32: {
      const float* from = reinterpret_cast<const float*>(data_) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = from[i];
      return;
    }
    case DType::f64:
      if (n > 0)
        std::memcpy(out.data(), reinterpret_cast<const double*>(data_) + begin, out.size_bytes());
      return;
    case DType::bf16: {
      const std::uint16_t* from = reinterpret_cast<const std::uint16_t*>(data_) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(from[i]);
      return;
    }
    case DType::f16: {
      const std::uint16_t* from = reinterpret_cast<const std::uint16_t*>(data_) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = f16_to_float(from[i]);
      return;
    }
    case DType::i64: {
      const std::int64_t* from = reinterpret_cast<const std::int64_t*>(data_) + begin;
      for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(from[i]);
      return;
    }
  }
}

std::vector<double> Array::to_doubles() const {
  std::vector<double> values(static_cast<std::size_t>(numel_));
  widen(0, values);
  return values;
}

Array Array::rows(std::int64_t begin, std::int64_t end) const {
  if (shape_.empty() || begin < 0 || begin > end || end > shape_[0])
    throw std::out_of_range("[array] rows " + std::to_string(begin) + " to " + std::to_string(end) +
                            " of shape " + to_string(shape_));
  Shape shape = shape_;
  shape[0] = end - begin;
  std::int64_t per_row = shape_[0] == 0 ? 0 : numel_ / shape_[0];
  return wrap(data_ + begin * per_row * static_cast<std::int64_t>(size_of(dtype_)), shape, dtype_,
              owner_);
}

Array Array::reshaped(Shape shape) const {
  if (lenscpp::numel(shape) != numel_)
    throw std::invalid_argument("[array] shape " + to_string(shape_) + " cannot be read as " +
                                to_string(shape));
  return wrap(data_, std::move(shape), dtype_, owner_);
}

Array Array::to(DType dtype) const {
  if (dtype == dtype_) return *this;
  MutableArray result(shape_, dtype);
  constexpr std::int64_t kChunk = 4096;
  std::vector<double> chunk(static_cast<std::size_t>(std::min(kChunk, numel_)));
  for (std::int64_t begin = 0; begin < numel_; begin += kChunk) {
    std::span<double> part(chunk.data(),
                           static_cast<std::size_t>(std::min(kChunk, numel_ - begin)));
    widen(begin, part);
    result.store(begin, part);
  }
  return std::move(result).freeze();
}

std::string Array::digest() const {
  std::string head = std::string(name_of(dtype_)) + to_string(shape_);
  XXH64_hash_t seed = XXH3_64bits(head.data(), head.size());
  XXH128_hash_t hash = XXH3_128bits_withSeed(data_, nbytes(), seed);
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, hash);
  std::string text;
  for (unsigned char byte : canonical.digest) {
    constexpr char kHex[] = "0123456789abcdef";
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

MutableArray::MutableArray(Shape shape, DType dtype)
    : shape_(std::move(shape)), numel_(lenscpp::numel(shape_)), dtype_(dtype) {
  constexpr std::size_t kAlignment_bytes = 64;
  // calloc: large blocks come as zero pages from the system and cost nothing until they are
  // written.
  void* base =
      std::calloc(static_cast<std::size_t>(numel_) * size_of(dtype_) + kAlignment_bytes, 1);
  if (base == nullptr) throw std::bad_alloc();
  auto address = reinterpret_cast<std::uintptr_t>(base);
  std::size_t gap = (kAlignment_bytes - address % kAlignment_bytes) % kAlignment_bytes;
  bytes_ = std::shared_ptr<std::byte[]>(static_cast<std::byte*>(base) + gap,
                                        [base](std::byte*) { std::free(base); });
}

MutableArray::MutableArray(const Array& source) : MutableArray(source.shape(), source.dtype()) {
  if (!source.empty()) std::memcpy(bytes(), source.bytes(), source.nbytes());
}

double MutableArray::get(std::int64_t index) const { return load(bytes_.get(), dtype_, index); }

void MutableArray::set(std::int64_t index, double value) { store(index, {&value, 1}); }

void MutableArray::store(std::int64_t begin, std::span<const double> values) {
  auto n = static_cast<std::int64_t>(values.size());
  if (begin < 0 || begin > numel_ - n)
    throw std::out_of_range("[array] store of " + std::to_string(n) + " elements at " +
                            std::to_string(begin) + " of " + std::to_string(numel_));
  switch (dtype_) {
    case DType::f32:
      for (std::int64_t i = 0; i < n; ++i) data<float>()[begin + i] = static_cast<float>(values[i]);
      return;
    case DType::f64:
      for (std::int64_t i = 0; i < n; ++i) data<double>()[begin + i] = values[i];
      return;
    case DType::bf16:
      for (std::int64_t i = 0; i < n; ++i)
        data<std::uint16_t>()[begin + i] = double_to_bf16(values[i]);
      return;
    case DType::f16:
      for (std::int64_t i = 0; i < n; ++i)
        data<std::uint16_t>()[begin + i] = double_to_f16(values[i]);
      return;
    case DType::i64:
      for (std::int64_t i = 0; i < n; ++i) {
        if (!(values[i] >= -0x1p63 && values[i] < 0x1p63))
          throw std::invalid_argument("[array] " + std::to_string(values[i]) + " is no int64");
        data<std::int64_t>()[begin + i] = static_cast<std::int64_t>(std::nearbyint(values[i]));
      }
      return;
  }
}

Array MutableArray::freeze() && {
  return Array::wrap(bytes_.get(), std::move(shape_), dtype_, bytes_);
}

}  // namespace lenscpp
