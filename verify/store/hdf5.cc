// Everything is written in the format of HDF5 1.10, whose own structures carry checksums, so that
// damage is an error and not a crash.
#include "verify/store/hdf5.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <vector>

namespace lenscpp {
namespace {

// Whole trailing dimensions, as many as make about a megabyte: what reading a row costs at most.
std::vector<hsize_t> chunk_of(const Shape& shape, DType dtype) {
  constexpr hsize_t kChunk_bytes = 1 << 20;
  std::vector<hsize_t> chunk(shape.begin(), shape.end());
  hsize_t bytes = static_cast<hsize_t>(numel(shape)) * size_of(dtype);
  for (hsize_t& extent : chunk) {
    if (bytes <= kChunk_bytes) break;
    bytes /= extent;
    hsize_t fitting = std::clamp<hsize_t>(kChunk_bytes / bytes, 1, extent);
    hsize_t chunks = (extent + fitting - 1) / fitting;
    extent = (extent + chunks - 1) / chunks;  // of equal size: the last one is stored in full
    bytes *= extent;
  }
  return chunk;
}

// Masked scores and patterns, ReLU's zeros: an eighth of the elements repeat the one before. Other
// activations have random mantissas, on which deflate spends seconds for a tenth of the bytes.
bool worth_deflating(const Array& value) {
  std::size_t size = size_of(value.dtype());
  std::int64_t repeated = 0;
  for (std::int64_t i = 1; i < value.numel(); ++i) {
    const std::byte* element = value.bytes() + static_cast<std::size_t>(i) * size;
    repeated += std::memcmp(element, element - size, size) == 0 ? 1 : 0;
  }
  return 8 * repeated > value.numel();
}

}  // namespace

std::recursive_mutex& hdf5() {
  static std::recursive_mutex mutex;
  static const bool ready = [] {
    H5dont_atexit();  // a file that cannot be written would be tried again at exit
    H5open();
    return H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  }();
  static_cast<void>(ready);
  return mutex;
}

Hdf5Error::Hdf5Error(const std::string& what) : std::runtime_error(what) {
  if (auto at = what.find("errno = "); at != what.npos)
    std::from_chars(what.data() + at + 8, what.data() + what.size(), error_number);
}

void throw_hdf5_error() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned n, const H5E_error2_t* error, void* innermost) -> herr_t {
        if (n == 0) *static_cast<std::string*>(innermost) = error->desc;
        return 0;
      },
      &text);
  H5Eclear2(H5E_DEFAULT);
  throw Hdf5Error(text.empty() ? "HDF5 gives no reason" : text);
}

Handle text_type(std::size_t size) {
  Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  check(H5Tset_size(type, std::max<std::size_t>(size, 1)));
  check(H5Tset_strpad(type, H5T_STR_NULLPAD));
  check(H5Tset_cset(type, H5T_CSET_UTF8));
  return type;
}

Handle type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return {H5Tcopy(H5T_IEEE_F32LE), H5Tclose};
    case DType::f64:
      return {H5Tcopy(H5T_IEEE_F64LE), H5Tclose};
    case DType::bf16:  // HDF5's own narrow floats are unknown to numpy
      return {H5Tcopy(H5T_STD_U16LE), H5Tclose};
    case DType::f16: {
      Handle half(H5Tcopy(H5T_IEEE_F32LE), H5Tclose);
      check(H5Tset_fields(half, 15, 10, 5, 0, 10));
      check(H5Tset_size(half, 2));
      check(H5Tset_ebias(half, 15));
      return half;
    }
    case DType::i64:
      return {H5Tcopy(H5T_STD_I64LE), H5Tclose};
  }
  throw std::logic_error("[store] not a DType");
}

void set_attribute(hid_t object, const char* name, const Handle& type, const void* value) {
  Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Handle attribute(H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  check(H5Awrite(attribute, type, value));
}
void set_attribute(hid_t object, const char* name, std::string_view value) {
  set_attribute(object, name, text_type(value.size()), value.data());
}

std::optional<std::string> text_attribute(hid_t object, const char* name) {
  if (check(H5Aexists(object, name)) == 0) return {};
  Handle attribute(H5Aopen(object, name, H5P_DEFAULT), H5Aclose);
  Handle type(H5Aget_type(attribute), H5Tclose);
  if (H5Tget_class(type) != H5T_STRING || check(H5Tis_variable_str(type)) > 0) return {};
  std::string text(H5Tget_size(type), '\0');
  if (H5Aget_storage_size(attribute) != text.size()) return {};
  check(H5Aread(attribute, type, text.data()));
  return text;
}
std::optional<std::int64_t> number_attribute(hid_t object, const char* name) {
  if (check(H5Aexists(object, name)) == 0) return {};
  Handle attribute(H5Aopen(object, name, H5P_DEFAULT), H5Aclose);
  std::int64_t value = 0;
  if (H5Aget_storage_size(attribute) != sizeof value) return {};
  check(H5Aread(attribute, H5T_NATIVE_INT64, &value));
  return value;
}

Handle creation_of(const Shape& shape, DType dtype, bool deflated) {
  Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  check(H5Pset_obj_track_times(creation, false));  // equal runs are equal files
  check(H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER));
  if (shape.empty() || numel(shape) == 0) return creation;
  std::vector<hsize_t> chunk = chunk_of(shape, dtype);
  check(H5Pset_chunk(creation, static_cast<int>(chunk.size()), chunk.data()));
  if (deflated && check(H5Zfilter_avail(H5Z_FILTER_DEFLATE)) > 0) {
    check(H5Pset_shuffle(creation));
    check(H5Pset_deflate(creation, 1));
  }
  check(H5Pset_fletcher32(creation));
  return creation;
}
Handle creation_of(const Array& value) {
  return creation_of(value.shape(), value.dtype(), worth_deflating(value));
}

Handle space_of(const Shape& shape) {
  std::vector<hsize_t> extents(shape.begin(), shape.end());
  return {extents.empty()
              ? H5Screate(H5S_SCALAR)
              : H5Screate_simple(static_cast<int>(extents.size()), extents.data(), nullptr),
          H5Sclose};
}

Handle rows_of(hid_t set, const Shape& shape, std::int64_t begin, std::int64_t n) {
  Handle space(H5Dget_space(set), H5Sclose);
  std::vector<hsize_t> start(shape.size(), 0), count(shape.begin(), shape.end());
  start[0] = static_cast<hsize_t>(begin);
  count[0] = static_cast<hsize_t>(n);
  check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr));
  return space;
}

}  // namespace lenscpp
