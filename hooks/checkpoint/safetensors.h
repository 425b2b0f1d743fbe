// The safetensors format: a strict, memory-mapped reader of files and sharded folders, and a
// writer. Knows no model: names and shapes are checked by weights.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hooks/array.h"

namespace lenscpp {

/// What a safetensors header says of one tensor. Bytes are counted from the end of the header.
struct TensorInfo {
  std::string dtype;  // the file's spelling: "F32", "BF16", "BOOL"
  Shape shape;
  std::uint64_t begin_byte, end_byte;
};

/// An open safetensors file. Arrays point into the mapping and keep it alive, also after this
/// object; the pages of a tensor leave the process's memory with the last array that points there.
class SafetensorsFile {
 public:
  /// Maps `path` and checks its whole header. Throws std::invalid_argument naming file and tensor
  /// for whatever the format does not allow, std::system_error when the file cannot be read.
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  /// The "__metadata__" of the header.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool has(const std::string& name) const { return tensors_.contains(name); }
  std::vector<std::string> names() const;
  /// One tensor, without a copy where its address is aligned. Throws std::invalid_argument when
  /// there is none of that name (naming the nearest) or its type is none of F64 F32 F16 BF16 I64.
  Array tensor(const std::string& name) const;
  /// The path, for error messages.
  const std::string& origin() const { return origin_; }

 private:
  friend SafetensorsFile parse_safetensors(std::span<const std::byte>, std::string,
                                           std::shared_ptr<const void>);
  std::string origin_;
  std::map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
  std::span<const std::byte> data_;  // what follows the header
  std::shared_ptr<const void> owner_;
  bool mapped_ = false;
};

/// The same from memory; `origin` is named in errors. `owner` keeps `bytes` alive; without one they
/// must outlive every array.
SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::string origin,
                                  std::shared_ptr<const void> owner = nullptr);

/// Writes `tensors` to `path`: first under a temporary name beside it, then synced and renamed, so
/// that no reader sees half a file. Throws std::invalid_argument for names that cannot be written,
/// std::system_error when the disk refuses.
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, Array>& tensors,
                       const std::map<std::string, std::string>& metadata = {});

/// The tensors of a Hugging Face folder: model.safetensors, or model.safetensors.index.json and its
/// shards.
class Checkpoint {
 public:
  /// Throws std::invalid_argument for what is ambiguous, missing from a shard, in another shard
  /// than the index says, or in no index; and for a folder with pickled weights only, with the line
  /// that converts them. Throws std::system_error when a file cannot be read.
  static Checkpoint open(const std::filesystem::path& folder);

  bool has(const std::string& name) const { return file_of_.contains(name); }
  /// In alphabetical order.
  std::vector<std::string> names() const;
  /// Throws std::invalid_argument like SafetensorsFile::tensor.
  Array tensor(const std::string& name) const;
  const TensorInfo& info(const std::string& name) const;
  /// The file that holds `name`, for error messages.
  const std::string& origin(const std::string& name) const;
  /// The folder, for error messages.
  const std::string& origin() const { return origin_; }

 private:
  const SafetensorsFile& file(const std::string& name) const;

  std::string origin_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, std::size_t> file_of_;
};

}  // namespace lenscpp
