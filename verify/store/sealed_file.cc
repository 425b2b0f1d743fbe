// Sealed files over the C interface of HDF5, which is not thread-safe: one lock for the process,
// held by every function that is called from outside. Everything is written in the format of HDF5
// 1.10, whose own structures carry checksums, so that damage is an error and not a crash.
#include "verify/store/sealed_file.h"

#define H5_USE_110_API  // later versions have other signatures under the same names
#include <fcntl.h>
#include <hdf5.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <functional>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "hooks/nearest.h"
#include "verify/store/sha256.h"
#include "verify/store/write_file.h"
#include "verify/verified_cache.h"

namespace lenscpp {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

constexpr std::int64_t kVersion = 1;
constexpr const char *kFormat = "lenscpp", *kDigests = "/digests", *kRootDigest = "/root_digest",
                     *kStatus = "/status";
constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64};

// Recursive: an object that cannot be made is destroyed under the lock of whoever makes it.
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
using Lock = std::lock_guard<std::recursive_mutex>;

// What HDF5 says of its innermost error, and the number of the system's where that is behind it.
struct Hdf5Error : std::runtime_error {
  explicit Hdf5Error(const std::string& what) : std::runtime_error(what) {
    if (auto at = what.find("errno = "); at != what.npos)
      std::from_chars(what.data() + at + 8, what.data() + what.size(), error_number);
  }
  int error_number = 0;
};

template <class T>
T check(T result) {
  if (result >= 0) return result;
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

// The value of a short text or whole number; empty for anything else, and where there is none.
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

// The rows [begin, begin + n) of a dataset's space.
Handle rows_of(hid_t set, const Shape& shape, std::int64_t begin, std::int64_t n) {
  Handle space(H5Dget_space(set), H5Sclose);
  std::vector<hsize_t> start(shape.size(), 0), count(shape.begin(), shape.end());
  start[0] = static_cast<hsize_t>(begin);
  count[0] = static_cast<hsize_t>(n);
  check(H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr));
  return space;
}

// The digest of an array that was written by groups of rows.
std::string digest_of(const std::vector<std::pair<std::int64_t, std::string>>& groups) {
  return sha256(json(groups).dump());
}

std::string digest_of(const Array& value) {
  return sha256(std::span<const std::byte>(value.bytes(), value.nbytes()));
}

bool is_special(const std::string& name) {
  return name == kDigests || name == kRootDigest || name == kStatus;
}

// "/act/x" -> "/act"; the groups that must be there for it.
std::vector<std::string> parents_of(const std::string& name) {
  std::vector<std::string> parents;
  for (auto at = name.find('/', 1); at != name.npos; at = name.find('/', at + 1))
    parents.push_back(name.substr(0, at));
  return parents;
}

FileKind kind_from_name(const std::string& name, const std::string& origin) {
  for (FileKind kind : {FileKind::run, FileKind::grid, FileKind::shard, FileKind::batch})
    if (name_of(kind) == name) return kind;
  throw std::invalid_argument("[store] " + origin + ": a file of kind " + in_quotes(name) +
                              "; allowed: run, grid, shard, batch");
}

[[noreturn]] void disk_refuses(int error_number, const fs::path& path) {
  throw std::system_error(error_number, std::generic_category(), "[store] " + path.string());
}

struct Descriptor {
  int fd;
  explicit Descriptor(int descriptor) : fd(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

// A temporary file is rubbish when its writer is gone: no process of that number, and HDF5's lock
// on the file is free.
void remove_rubbish(const fs::path& path) {
  std::string start = "." + path.filename().string() + ".", end = ".part";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder_of(path), ignored)) {
    std::string name = entry.path().filename().string();
    if (!name.starts_with(start) || !name.ends_with(end)) continue;
    pid_t writer = 0;
    auto parsed =
        std::from_chars(name.data() + start.size(), name.data() + name.size() - end.size(), writer);
    if (parsed.ec != std::errc() || *parsed.ptr != '.' || writer <= 0) continue;
    if (writer != ::getpid() && (::kill(writer, 0) == 0 || errno != ESRCH)) continue;
    Descriptor file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd >= 0 && ::flock(file.fd, LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
  }
}

}  // namespace

std::string_view name_of(FileKind kind) {
  switch (kind) {
    case FileKind::run:
      return "run";
    case FileKind::grid:
      return "grid";
    case FileKind::shard:
      return "shard";
    case FileKind::batch:
      return "batch";
  }
  throw std::logic_error("[store] not a FileKind");
}

Status status_from_name(std::string_view name) {
  for (Status status : {Status::verified, Status::invalid, Status::unverified})
    if (name_of(status) == name) return status;
  throw std::invalid_argument("[store] " + in_quotes(name) +
                              " is not a status; allowed: VERIFIED, INVALID, UNVERIFIED");
}

// ---- writing ----

struct SealedWriter::Open {
  fs::path path, temporary;
  FileKind kind;
  Handle file;
  json objects = json::object();
  std::set<std::string> groups;  // of HDF5
  // The array that is written by rows.
  std::string by_rows;
  Shape rows_shape;
  DType rows_dtype = DType::f64;
  std::vector<std::pair<std::int64_t, std::string>> row_groups;
  std::int64_t rows_written = 0;

  ~Open() {
    Lock lock(hdf5());
    file = Handle();
    if (temporary.empty()) return;
    // A file that HDF5 cannot close keeps its descriptor: at least not its space on the disk.
    static_cast<void>(::truncate(temporary.c_str(), 0));
    ::unlink(temporary.c_str());
  }

  // HDF5's errors as the disk's.
  template <class Work>
  void guarded(const Work& work) {
    Lock lock(hdf5());
    try {
      work();
    } catch (const Hdf5Error& error) {
      if (error.error_number != 0) disk_refuses(error.error_number, path);
      throw std::runtime_error("[store] " + path.string() + " cannot be written: " + error.what());
    }
  }

  void write(const std::string& name, const Handle& type, const Handle& space, const void* data,
             const Handle& creation, const std::function<void(hid_t)>& describe = {}) {
    if (H5Sget_simple_extent_npoints(space) == 0) data = nullptr;
    Handle group_creation(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
    check(
        H5Pset_link_creation_order(group_creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED));
    for (const std::string& parent : parents_of(name))
      if (groups.insert(parent).second)
        Handle(H5Gcreate2(file, parent.c_str(), H5P_DEFAULT, group_creation, H5P_DEFAULT),
               H5Gclose);
    Handle set(H5Dcreate2(file, name.c_str(), type, space, H5P_DEFAULT, creation, H5P_DEFAULT),
               H5Dclose);
    if (data != nullptr) check(H5Dwrite(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
    if (describe) describe(set);
    set.close();
  }

  void write_text(const std::string& name, const std::string& text) {
    write(name, text_type(text.size()), Handle(H5Screate(H5S_SCALAR), H5Sclose), text.data(),
          creation_of({}));
  }

  void end_rows() {
    if (by_rows.empty()) return;
    if (rows_written != rows_shape[0])
      throw std::invalid_argument("[store] " + in_quotes(by_rows) + " has " +
                                  std::to_string(rows_written) + " rows of " +
                                  std::to_string(rows_shape[0]));
    objects[by_rows]["groups"] = row_groups;
    objects[by_rows]["sha256"] = digest_of(row_groups);
    by_rows.clear();
    row_groups.clear();
  }

  void add(const std::string& name, json description) {
    if (name.size() < 2 || name.front() != '/' || name.back() == '/' ||
        name.find("//") != name.npos || name.find('\0') != name.npos || is_special(name))
      throw std::invalid_argument("[store] " + in_quotes(name) +
                                  " is no name of an object; needed: a path such as \"/act/name\"");
    if (!objects.emplace(name, std::move(description)).second)
      throw std::invalid_argument("[store] " + in_quotes(name) + " is given twice");
  }
};

SealedWriter::SealedWriter(fs::path path, FileKind kind) : open_(std::make_unique<Open>()) {
  static std::atomic<unsigned> counter{0};
  open_->path = std::move(path);
  open_->kind = kind;
  const fs::path& target = open_->path;
  if (target.filename().empty() || fs::is_directory(target)) disk_refuses(EISDIR, target);
  {
    // Not between another thread's close, which frees HDF5's lock on its file, and its rename.
    Lock lock(hdf5());
    remove_rubbish(target);
  }
  open_->temporary =
      folder_of(target) / ("." + target.filename().string() + "." + std::to_string(::getpid()) +
                           "." + std::to_string(counter++) + ".part");
  open_->guarded([&] {
    Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose),
        creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
    check(H5Pset_libver_bounds(access, H5F_LIBVER_V110, H5F_LIBVER_V110));
    check(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG));
    check(H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED));
    open_->file =
        Handle(H5Fcreate(open_->temporary.c_str(), H5F_ACC_EXCL, creation, access), H5Fclose);
    set_attribute(open_->file, "format", kFormat);
    set_attribute(open_->file, "version", type_of(DType::i64), &kVersion);
    set_attribute(open_->file, "kind", name_of(kind));
  });
}

SealedWriter::~SealedWriter() = default;

void SealedWriter::document(const std::string& name, const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  open_->add(name, {{"dtype", "json"}, {"shape", json::array()}, {"sha256", sha256(text)}});
  open_->guarded([&] { open_->write_text(name, text); });
}

void SealedWriter::array(const std::string& name, const Array& value) {
  open_->add(
      name,
      {{"dtype", name_of(value.dtype())}, {"shape", value.shape()}, {"sha256", digest_of(value)}});
  open_->guarded([&] {
    open_->write(name, type_of(value.dtype()), space_of(value.shape()), value.bytes(),
                 creation_of(value), [&](hid_t set) {
                   if (value.dtype() != DType::bf16) return;
                   set_attribute(set, "dtype", name_of(DType::bf16));
                   set_attribute(set, "decode", "(x[()].astype('uint32') << 16).view('float32')");
                 });
  });
}

void SealedWriter::begin_rows(const std::string& name, DType dtype, const Shape& shape) {
  Open& o = *open_;
  o.end_rows();
  if (shape.empty() || numel(shape) == 0 || dtype == DType::bf16)
    throw std::invalid_argument("[store] " + in_quotes(name) + " is " +
                                std::string(lenscpp::name_of(dtype)) + " " + to_string(shape) +
                                "; needed: an array of at least one row, of no bfloat16");
  o.add(name, {{"dtype", lenscpp::name_of(dtype)}, {"shape", shape}});
  o.guarded([&] {
    o.write(name, type_of(dtype), space_of(shape), nullptr, creation_of(shape, dtype, false));
  });
  o.by_rows = name;
  o.rows_shape = shape;
  o.rows_dtype = dtype;
  o.rows_written = 0;
}

void SealedWriter::append_rows(const Array& rows) {
  Open& o = *open_;
  Shape needed = o.rows_shape;
  if (!needed.empty() && rows.rank() == std::ssize(needed)) needed[0] = rows.size(0);
  if (o.by_rows.empty() || rows.dtype() != o.rows_dtype || rows.shape() != needed || rows.empty() ||
      o.rows_written + rows.size(0) > o.rows_shape[0])
    throw std::invalid_argument(
        "[store] " + in_quotes(o.by_rows) + " is " + to_string(o.rows_shape) + " and has " +
        std::to_string(o.rows_written) + " rows: these do not fit: " +
        std::string(lenscpp::name_of(rows.dtype())) + " " + to_string(rows.shape()));
  o.guarded([&] {
    Handle set(H5Dopen2(o.file, o.by_rows.c_str(), H5P_DEFAULT), H5Dclose);
    Handle to = rows_of(set, o.rows_shape, o.rows_written, rows.size(0));
    check(H5Dwrite(set, type_of(rows.dtype()), space_of(rows.shape()), to, H5P_DEFAULT,
                   rows.bytes()));
    set.close();
  });
  o.row_groups.emplace_back(rows.size(0), digest_of(rows));
  o.rows_written += rows.size(0);
}

void SealedWriter::commit(Status status) {
  Open& o = *open_;
  o.end_rows();
  std::string digests = json{
      {"format", kFormat},
      {"version", kVersion},
      {"kind", name_of(o.kind)},
      {"status", name_of(status)},
      {"objects",
       o.objects}}.dump();
  o.guarded([&] {
    o.write_text(kDigests, digests);
    o.write_text(kRootDigest, sha256(digests));
    check(H5Fflush(o.file, H5F_SCOPE_LOCAL));
    o.write_text(kStatus, std::string(name_of(status)));
    o.file.close();
    rename_durably(o.temporary, o.path);
    o.temporary.clear();
  });
}

// ---- reading ----

struct SealedFile::Open {
  std::string origin;
  bool checked;
  Handle file;
  FileKind kind = FileKind::run;
  Status status = Status::unverified;
  std::map<std::string, Entry> entries;

  Open(std::string path, bool check_digests) : origin(std::move(path)), checked(check_digests) {}
  ~Open() {
    Lock lock(hdf5());
    file = Handle();
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw NotVerified("[store] " + origin + ": " + what);
  }

  // HDF5's errors as damage to `name`.
  template <class Work>
  auto guarded(const std::string& name, const Work& work) const {
    Lock lock(hdf5());
    try {
      return work();
    } catch (const Hdf5Error& error) {
      refuse(name + " cannot be read, the file is damaged or cut short (" + error.what() + ")");
    }
  }

  std::string text(const std::string& name) const {
    return guarded(name, [&] {
      Handle set(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
      Handle type(H5Dget_type(set), H5Tclose), space(H5Dget_space(set), H5Sclose);
      std::size_t size = H5Tget_size(type);
      if (H5Tget_class(type) != H5T_STRING || check(H5Tis_variable_str(type)) > 0 ||
          H5Sget_simple_extent_npoints(space) != 1 || H5Dget_storage_size(set) != size)
        refuse(name + " is not a text of fixed length");
      std::string text(size, '\0');
      check(H5Dread(set, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, text.data()));
      return text;
    });
  }

  // What HDF5 says of a dataset. A text is taken for a document.
  Entry described(const std::string& name, hid_t set) const {
    Handle type(H5Dget_type(set), H5Tclose), space(H5Dget_space(set), H5Sclose);
    if (H5Tget_class(type) == H5T_STRING) return {};
    Entry entry;
    for (DType dtype : kDTypes)
      if (check(H5Tequal(type, type_of(dtype))) > 0) entry.dtype = dtype;
    if (!entry.dtype) refuse(name + " is of a type that this library does not write");
    if (entry.dtype == DType::bf16 && text_attribute(set, "dtype") != name_of(DType::bf16))
      refuse(name + " is uint16 without the attribute dtype = \"bfloat16\"");
    std::vector<hsize_t> extents(
        static_cast<std::size_t>(check(H5Sget_simple_extent_ndims(space))));
    check(H5Sget_simple_extent_dims(space, extents.data(), nullptr));
    entry.shape.assign(extents.begin(), extents.end());
    return entry;
  }

  // Every dataset of the file and what it is; `groups` gets the names of the groups.
  std::map<std::string, Entry> walk(std::set<std::string>& groups) const {
    std::vector<std::pair<std::string, bool>> links;  // and whether they are hard
    check(H5Lvisit(
        file, H5_INDEX_NAME, H5_ITER_NATIVE,
        [](hid_t, const char* name, const H5L_info_t* info, void* to) -> herr_t {
          static_cast<decltype(links)*>(to)->emplace_back(std::string("/") + name,
                                                          info->type == H5L_TYPE_HARD);
          return 0;
        },
        &links));
    std::map<std::string, Entry> sets;
    for (const auto& [name, hard] : links) {
      if (!hard) refuse(name + " is a link to another place, not a value");
      Handle object(H5Oopen(file, name.c_str(), H5P_DEFAULT), H5Oclose);
      if (H5Iget_type(object) == H5I_GROUP)
        groups.insert(name);
      else if (H5Iget_type(object) == H5I_DATASET)
        sets.emplace(name, described(name, object));
      else
        refuse(name + " is neither a group nor a dataset");
    }
    return sets;
  }

  // The table of digests, which must be the one that was sealed.
  json sealed_table() const {
    std::string digests = text(kDigests);
    if (text(kRootDigest) != sha256(digests))
      refuse("the root digest does not match: " + std::string(kDigests) + " or " +
             std::string(kRootDigest) + " was changed after it was written");
    try {
      return json::parse(digests);
    } catch (const json::exception&) {
      refuse(std::string(kDigests) + " is not JSON");
    }
  }

  void check_all_of(const std::map<std::string, Entry>& sets, std::set<std::string> groups) const {
    for (const auto& [name, entry] : entries) {
      auto found = sets.find(name);
      if (found == sets.end()) refuse(name + " is missing");
      if (found->second.dtype != entry.dtype || found->second.shape != entry.shape)
        refuse(name + " is of another dtype or shape than when it was written");
      for (const std::string& parent : parents_of(name)) groups.erase(parent);
    }
    for (const auto& [name, entry] : sets)
      if (!entries.contains(name) && !is_special(name))
        refuse(name + " was added after the file was written");
    if (!groups.empty()) refuse(*groups.begin() + " was added after the file was written");
  }

  void read_table(const std::map<std::string, Entry>& sets, const std::set<std::string>& groups) {
    for (const char* name : {kStatus, kDigests, kRootDigest})
      if (!sets.contains(name))
        refuse(std::string(name) + " is missing: the file was not written to its end");
    json table = sealed_table();
    try {
      if (table.at("format") != kFormat || table.at("version") != kVersion ||
          table.at("kind") != name_of(kind))
        refuse("the attributes of / are not those that were written");
      if (table.at("status") != text(kStatus))
        refuse("/status says " + in_quotes(text(kStatus)) + ", which is not what was written");
      status = status_from_name(text(kStatus));
      for (const auto& [name, value] : table.at("objects").items()) {
        Entry entry{.shape = value.at("shape").get<Shape>(), .sha256 = value.at("sha256")};
        if (value.contains("groups")) entry.groups = value.at("groups");
        if (value.at("dtype") != "json")
          entry.dtype = dtype_from_name(value.at("dtype").get<std::string>());
        entries.emplace(name, std::move(entry));
      }
    } catch (const json::exception&) {
      refuse(std::string(kDigests) + " is not a table of this library");
    }
    check_all_of(sets, groups);
  }

  Array read(const std::string& name, const Entry& entry, std::int64_t begin,
             std::int64_t n) const {
    return guarded(name, [&] {
      Shape shape = entry.shape;
      if (!shape.empty()) shape[0] = n;
      MutableArray result(shape, *entry.dtype);
      Handle set(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
      Handle transfer(H5Pcreate(H5P_DATASET_XFER), H5Pclose);
      if (!checked) check(H5Pset_edc_check(transfer, H5Z_DISABLE_EDC));
      if (result.numel() == 0) return std::move(result).freeze();
      Handle from =
          shape.empty() ? Handle(H5Dget_space(set), H5Sclose) : rows_of(set, entry.shape, begin, n);
      check(H5Dread(set, type_of(*entry.dtype), space_of(shape), from, transfer, result.bytes()));
      return std::move(result).freeze();
    });
  }

  void check_digest(const std::string& name, const Array& value, const std::string& digest) const {
    if (checked && digest_of(value) != digest)
      refuse(name + " was changed after it was written: its digest does not match");
  }

  const Entry& at(const std::string& name, bool document) const {
    auto found = entries.find(name);
    if (found != entries.end() && !found->second.dtype == document) return found->second;
    std::vector<std::string> names;
    for (const auto& [known, entry] : entries)
      if (!entry.dtype == document) names.push_back(known);
    throw std::invalid_argument("[store] " + origin + " has no " +
                                (document ? "document " : "array ") + in_quotes(name) +
                                (names.empty() ? "" : "; nearest: " + nearest_names(name, names)));
  }
};

std::shared_ptr<SealedFile::Open> SealedFile::opened(const fs::path& path, bool checked) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  auto open = std::make_shared<Open>(path.string(), checked);
  char start[8] = {};
  {
    Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.fd < 0) disk_refuses(errno, path);
    ssize_t n = ::read(file.fd, start, sizeof start);
    if (n < 0) disk_refuses(errno, path);
    if (std::string_view(start, static_cast<std::size_t>(n)) != kSignature)
      throw std::invalid_argument("[store] " + open->origin +
                                  " is not an HDF5 file; needed: a file that lenscpp saved");
  }
  return open->guarded("/", [&] {
    Handle access(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
    check(H5Pset_fclose_degree(access, H5F_CLOSE_STRONG));
    open->file = Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access), H5Fclose);
    if (text_attribute(open->file, "format") != kFormat)
      throw std::invalid_argument("[store] " + open->origin +
                                  " is an HDF5 file, but not one that lenscpp saved");
    std::int64_t version = number_attribute(open->file, "version").value_or(0);
    if (version < 1 || version > kVersion)
      throw std::invalid_argument("[store] " + open->origin + ": version " +
                                  std::to_string(version) + " of the format; this lenscpp reads " +
                                  std::to_string(kVersion));
    open->kind = kind_from_name(text_attribute(open->file, "kind").value_or(""), open->origin);
    return open;
  });
}

FileKind SealedFile::kind_of(const fs::path& path) { return opened(path, true)->kind; }

SealedFile SealedFile::open(const fs::path& path) {
  auto open = opened(path, true);
  open->guarded("/", [&] {
    std::set<std::string> groups;
    auto sets = open->walk(groups);
    open->read_table(sets, groups);
  });
  SealedFile file(open);
  for (const auto& [name, entry] : open->entries)
    if (!entry.dtype) file.document(name);
  if (open->status != Status::verified)
    open->refuse("its status is " + std::string(name_of(open->status)) +
                 ": no analysis may read it; load_unverified opens it to be looked at");
  return file;
}

SealedFile SealedFile::open_unverified(const fs::path& path) {
  auto open = opened(path, false);
  open->guarded("/", [&] {
    std::set<std::string> groups;
    open->entries = open->walk(groups);
    if (open->entries.contains(kStatus)) {
      std::string says = open->text(kStatus);
      for (Status status : {Status::verified, Status::invalid})
        if (says == name_of(status)) open->status = status;
    }
    for (const char* name : {kStatus, kDigests, kRootDigest}) open->entries.erase(name);
  });
  return SealedFile(open);
}

FileKind SealedFile::kind() const { return open_->kind; }
Status SealedFile::status() const { return open_->status; }
const std::map<std::string, SealedFile::Entry>& SealedFile::entries() const {
  return open_->entries;
}
const std::string& SealedFile::origin() const { return open_->origin; }

json SealedFile::document(const std::string& name) const {
  const Entry& entry = open_->at(name, true);
  std::string text = open_->text(name);
  if (open_->checked && sha256(text) != entry.sha256)
    open_->refuse(name + " was changed after it was written: its digest does not match");
  try {
    return json::parse(text);
  } catch (const json::exception&) {
    open_->refuse(name + " is not JSON");
  }
}

Array SealedFile::array(const std::string& name) const {
  const Entry& entry = open_->at(name, false);
  if (!entry.groups.empty()) return rows(name, 0, entry.shape[0]);
  Array value = open_->read(name, entry, 0, entry.shape.empty() ? 0 : entry.shape[0]);
  open_->check_digest(name, value, entry.sha256);
  return value;
}

Array SealedFile::rows(const std::string& name, std::int64_t begin, std::int64_t end) const {
  const Entry& entry = open_->at(name, false);
  std::int64_t n = entry.shape.empty() ? 0 : entry.shape[0];
  if (begin < 0 || begin > end || end > n)
    throw std::out_of_range("[store] rows " + std::to_string(begin) + " to " + std::to_string(end) +
                            " out of range: " + name + " has " + std::to_string(n));
  if (entry.groups.empty() && open_->checked) return array(name).rows(begin, end);
  if (entry.groups.empty()) return open_->read(name, entry, begin, end - begin);
  if (digest_of(entry.groups) != entry.sha256)
    open_->refuse(name + ": its digest is not that of its groups");
  Shape shape = entry.shape;
  shape[0] = end - begin;
  MutableArray result(shape, *entry.dtype);
  std::size_t row =
      static_cast<std::size_t>(numel({shape.begin() + 1, shape.end()})) * size_of(*entry.dtype);
  std::int64_t first = 0;
  for (const auto& [size, digest] : entry.groups) {
    std::int64_t from = std::max(begin, first), to = std::min(end, first + size);
    if (from < to) {
      Array group = open_->read(name, entry, first, size);
      open_->check_digest(name, group, digest);
      std::memcpy(result.bytes() + row * static_cast<std::size_t>(from - begin),
                  group.bytes() + row * static_cast<std::size_t>(from - first),
                  row * static_cast<std::size_t>(to - from));
    }
    first += size;
  }
  if (first != n) open_->refuse(name + ": its groups are of " + std::to_string(first) + " rows");
  return std::move(result).freeze();
}

void SealedFile::verify_all() const {
  for (const auto& [name, entry] : open_->entries) {
    std::int64_t first = 0;
    for (const auto& [size, digest] : entry.groups) rows(name, first, first + size), first += size;
    if (!entry.dtype)
      document(name);
    else if (entry.groups.empty())
      array(name);
  }
}

}  // namespace lenscpp
