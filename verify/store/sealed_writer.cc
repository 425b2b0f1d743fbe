// Writing sealed files.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>

#include "hooks/nearest.h"
#include "verify/store/descriptor.h"
#include "verify/store/hdf5.h"
#include "verify/store/sealed_format.h"
#include "verify/store/sha256.h"
#include "verify/store/write_file.h"

namespace lenscpp {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

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
    set_attribute(open_->file, "version", type_of(DType::i64), &kFormatVersion);
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
      {"version", kFormatVersion},
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

}  // namespace lenscpp
