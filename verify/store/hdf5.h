// The C interface of HDF5 behind handles that close themselves and errors that are exceptions. For
// the files of this folder alone: nothing else includes <hdf5.h>.
#pragma once

#define H5_USE_110_API  // later versions have other signatures under the same names
#include <hdf5.h>

#include <cstdint>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "hooks/array.h"

namespace lenscpp {

/// HDF5 is not thread-safe: one lock for the process, held by every function that is called from
/// outside. Recursive: an object that cannot be made is destroyed under the lock of whoever makes
/// it.
std::recursive_mutex& hdf5();
using Lock = std::lock_guard<std::recursive_mutex>;

/// What HDF5 says of its innermost error, and the number of the system's where that is behind it.
struct Hdf5Error : std::runtime_error {
  explicit Hdf5Error(const std::string& what);
  int error_number = 0;
};
/// Throws what HDF5 said last.
[[noreturn]] void throw_hdf5_error();
/// A result that is no error. Throws Hdf5Error.
template <class T>
T check(T result) {
  if (result < 0) throw_hdf5_error();
  return result;
}

/// An identifier of HDF5, closed at the end.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle() = default;
  Handle(hid_t id, Close close) : id_(check(id)), close_(close) {}
  Handle(Handle&& other) noexcept
      : id_(std::exchange(other.id_, H5I_INVALID_HID)), close_(other.close_) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(id_, other.id_);
    std::swap(close_, other.close_);
    return *this;
  }
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  operator hid_t() const { return id_; }
  void close() {
    if (id_ >= 0) check(close_(std::exchange(id_, H5I_INVALID_HID)));
  }

 private:
  hid_t id_ = H5I_INVALID_HID;
  Close close_ = nullptr;
};

/// A text of fixed length, padded with zeros.
Handle text_type(std::size_t size);
/// How a dtype is stored: bfloat16 as uint16, since numpy does not know HDF5's own.
Handle type_of(DType dtype);

void set_attribute(hid_t object, const char* name, const Handle& type, const void* value);
void set_attribute(hid_t object, const char* name, std::string_view value);
/// The value of a short text or whole number; empty for anything else, and where there is none.
std::optional<std::string> text_attribute(hid_t object, const char* name);
std::optional<std::int64_t> number_attribute(hid_t object, const char* name);

/// How a dataset is made: in chunks of about a megabyte with checksums, deflated where it is asked
/// for and HDF5 can.
Handle creation_of(const Shape& shape, DType dtype, bool deflated);
/// Deflated where that is worth the time.
Handle creation_of(const Array& value);
Handle space_of(const Shape& shape);
/// The rows [begin, begin + n) of a dataset's space.
Handle rows_of(hid_t set, const Shape& shape, std::int64_t begin, std::int64_t n);

}  // namespace lenscpp
