// Reading sealed files.
#include "verify/store/sealed_file.h"

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>

#include "hooks/nearest.h"
#include "verify/store/descriptor.h"
#include "verify/store/hdf5.h"
#include "verify/store/sealed_format.h"
#include "verify/store/sha256.h"
#include "verify/verified_cache.h"

namespace lenscpp {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::f16, DType::i64};

}  // namespace

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
      if (table.at("format") != kFormat || table.at("version") != kFormatVersion ||
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
    if (version < 1 || version > kFormatVersion)
      throw std::invalid_argument("[store] " + open->origin + ": version " +
                                  std::to_string(version) + " of the format; this lenscpp reads " +
                                  std::to_string(kFormatVersion));
    open->kind = kind_from_name(text_attribute(open->file, "kind").value_or(""), open->origin);
    return open;
  });
}

FileKind SealedFile::kind_of(const fs::path& path) { return opened(path, true)->kind; }

SealedFile SealedFile::open_of_any_status(const fs::path& path) {
  auto open = opened(path, true);
  open->guarded("/", [&] {
    std::set<std::string> groups;
    auto sets = open->walk(groups);
    open->read_table(sets, groups);
  });
  SealedFile file(open);
  for (const auto& [name, entry] : open->entries)
    if (!entry.dtype && open->kind != FileKind::batch) file.document(name);
  return file;
}

SealedFile SealedFile::open(const fs::path& path) {
  SealedFile file = open_of_any_status(path);
  if (file.status() != Status::verified)
    file.open_->refuse("its status is " + std::string(name_of(file.status())) +
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
