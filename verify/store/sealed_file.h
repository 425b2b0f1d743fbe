// A sealed file: JSON documents and arrays in one HDF5 file, with a digest of everything in it, so
// that what was edited, cut short or damaged is noticed when it is read. Runs and grids are such
// files (run_file.h); h5py reads them without this library. A guard against accidents, not forgery.
//
//   /                 attributes: format "lenscpp", version, kind ("run", "grid", "shard", "batch")
//   /NAME...          documents (UTF-8 JSON) and arrays, as the kind has them
//   /digests          {format, version, kind, status, objects: path -> {dtype, shape, sha256}}; of
//   an
//                     array that was written by groups of rows also {groups: [[rows, sha256], ...]}
//   /root_digest      SHA-256 of /digests
//   /status           "VERIFIED", "INVALID" or "UNVERIFIED"; written last
//
// bfloat16 is stored as uint16 with the attributes dtype = "bfloat16" and decode, a line of numpy.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/array.h"
#include "verify/verdict.h"

namespace lenscpp {

/// What a file is of.
enum class FileKind : std::uint8_t { run, grid, shard, batch };
std::string_view name_of(FileKind kind);  // "run", "grid", "shard", "batch"
/// Throws std::invalid_argument naming what is allowed.
Status status_from_name(std::string_view name);

/// Writes one sealed file: under a temporary name in the same folder, until commit() renames it. A
/// writer that is destroyed before leaves what stood at `path` as it was, and nothing else.
/// Functions throw std::system_error when the disk refuses, std::invalid_argument for what cannot
/// be a name.
class SealedWriter {
 public:
  /// Also removes temporary files that a killed process left of an earlier save to `path`.
  SealedWriter(std::filesystem::path path, FileKind kind);
  ~SealedWriter();
  SealedWriter(const SealedWriter&) = delete;
  SealedWriter& operator=(const SealedWriter&) = delete;

  /// `name` is a path such as "/act/blocks.0.hook_resid_pre", each given once. What is not UTF-8 in
  /// a document's strings becomes U+FFFD.
  void document(const std::string& name, const nlohmann::json& value);
  void array(const std::string& name, const Array& value);
  /// An array of more than memory holds: [n, ...], written by groups of rows, each with a digest of
  /// its own, so that rows can be read, and checked, without the others. Throws
  /// std::invalid_argument for an array without rows.
  void begin_rows(const std::string& name, DType dtype, const Shape& shape);
  /// The next rows of the array that was begun last. Throws std::invalid_argument when they are of
  /// another dtype or shape, or more than are left.
  void append_rows(const Array& rows);
  /// Digests and status, fsync, rename, fsync of the folder. Nothing can be written afterwards.
  /// Throws std::invalid_argument when rows of an array are missing.
  void commit(Status status);

 private:
  struct Open;
  std::unique_ptr<Open> open_;
};

/// A sealed file, open for reading. Copies share the open file; threads may share a copy.
class SealedFile {
 public:
  /// What the file says of one object.
  struct Entry {
    std::optional<DType> dtype;  // none: a document
    Shape shape = {};            // of an array
    std::string sha256;          // of its bytes; empty through the unverified door
    /// Of an array that was written by rows: how many in each group, and their digests, of which
    /// `sha256` then is the digest.
    std::vector<std::pair<std::int64_t, std::string>> groups = {};
  };

  /// Opens a file that may be used; documents of a batch, of which there may be many, are checked
  /// when they are read. Throws NotVerified naming the object when the status is not
  /// VERIFIED, a digest of a document or of the table does not match, an object is missing, extra,
  /// or of another dtype or shape, or the file is cut short or half-written; std::invalid_argument
  /// for what is no file of this library, or of a later version of the format; std::system_error
  /// when it cannot be read.
  static SealedFile open(const std::filesystem::path& path);
  /// The same for a file of any status: every digest is checked, and nothing vouches for what was
  /// computed.
  static SealedFile open_of_any_status(const std::filesystem::path& path);
  /// Opens whatever can be read, for looking at: no status and no digest is checked, now or later.
  /// Throws NotVerified for what cannot even be read.
  static SealedFile open_unverified(const std::filesystem::path& path);
  /// The kind that a file says it is of, of a file that may be damaged otherwise. Throws as open()
  /// for what is no file of this library.
  static FileKind kind_of(const std::filesystem::path& path);

  FileKind kind() const;
  /// What the file says; UNVERIFIED where it says nothing.
  Status status() const;
  /// Every object, by its path.
  const std::map<std::string, Entry>& entries() const;
  bool has(const std::string& name) const { return entries().contains(name); }
  /// The path of the file, for error messages.
  const std::string& origin() const;

  /// Throw NotVerified when the bytes do not match their digest or cannot be read,
  /// std::invalid_argument when there is no such object.
  nlohmann::json document(const std::string& name) const;
  /// Reads this array alone.
  Array array(const std::string& name) const;
  /// Rows [begin, end) of an array that was written by rows; reads, and checks, the groups that
  /// they are in. Throws std::out_of_range too.
  Array rows(const std::string& name, std::int64_t begin, std::int64_t end) const;
  /// Reads and checks every object.
  void verify_all() const;

 private:
  struct Open;
  explicit SealedFile(std::shared_ptr<const Open> open) : open_(std::move(open)) {}
  static std::shared_ptr<Open> opened(const std::filesystem::path& path, bool checked);
  std::shared_ptr<const Open> open_;
};

}  // namespace lenscpp
