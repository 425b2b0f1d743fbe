// Reading and writing safetensors. Every number in a header is a claim until it is checked here.
#include "hooks/checkpoint/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr std::uint64_t kLongestHeader_bytes = 100'000'000;  // the format's own limit
constexpr std::size_t kLongestIndex_bytes = 100'000'000;
constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

struct FileType {
  std::string_view name;
  std::uint64_t bytes;         // of one element
  std::optional<DType> dtype;  // none: may lie in a file (masks do), cannot be read as an Array
};

constexpr std::array<FileType, 15> kFileTypes{{{"F64", 8, DType::f64},
                                               {"F32", 4, DType::f32},
                                               {"F16", 2, DType::f16},
                                               {"BF16", 2, DType::bf16},
                                               {"I64", 8, DType::i64},
                                               {"I32", 4, std::nullopt},
                                               {"I16", 2, std::nullopt},
                                               {"I8", 1, std::nullopt},
                                               {"U64", 8, std::nullopt},
                                               {"U32", 4, std::nullopt},
                                               {"U16", 2, std::nullopt},
                                               {"U8", 1, std::nullopt},
                                               {"BOOL", 1, std::nullopt},
                                               {"F8_E4M3", 1, std::nullopt},
                                               {"F8_E5M2", 1, std::nullopt}}};

const FileType* find_type(std::string_view name) {
  for (const FileType& type : kFileTypes)
    if (type.name == name) return &type;
  return nullptr;
}

std::string type_names(bool readable_only) {
  std::string text;
  for (const FileType& type : kFileTypes)
    if (!readable_only || type.dtype) text.append(text.empty() ? "" : " ").append(type.name);
  return text;
}

const FileType& file_type(DType dtype) {
  for (const FileType& type : kFileTypes)
    if (type.dtype == dtype) return type;
  throw std::logic_error("[safetensors] not a DType");
}

[[noreturn]] void refuse(const std::string& origin, const std::string& reason) {
  throw std::invalid_argument("[safetensors] " + origin + ": " + reason);
}

[[noreturn]] void refuse_short(const std::string& origin, std::size_t size) {
  refuse(origin, std::to_string(size) + " bytes, a safetensors file has at least 8");
}

[[noreturn]] void fail(int error, const std::filesystem::path& path) {
  throw std::system_error(error, std::generic_category(), "[safetensors] " + path.string());
}

[[noreturn]] void refuse_unknown_name(const std::string& origin, const std::string& name,
                                      const std::vector<std::string>& names) {
  refuse(origin,
         "no tensor " + in_quotes(name) + "; it holds " + std::to_string(names.size()) +
             (names.empty() ? "" : ", the nearest names are " + nearest_names(name, names)));
}

std::string interval(std::uint64_t begin, std::uint64_t end) {
  return std::to_string(begin) + ".." + std::to_string(end);
}

// A non-negative integer of the header; 18446744073709551615 and 1.0 are none.
std::uint64_t count(const json& value, const std::string& origin, const std::string& what) {
  if (!value.is_number_unsigned() ||
      value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max())
    refuse(origin, what + " is " + show(value) + ", a non-negative 64-bit integer is allowed");
  return value.get<std::uint64_t>();
}

TensorInfo parse_tensor(const std::string& name, const json& entry, const std::string& origin) {
  std::string where = "tensor " + in_quotes(name);
  if (!entry.is_object())
    refuse(origin, where + " is described by a " + entry.type_name() +
                       ", an object with dtype, shape and data_offsets is allowed");
  for (const char* field : {"dtype", "shape", "data_offsets"})
    if (!entry.contains(field)) refuse(origin, where + " has no " + field);
  for (const auto& [field, value] : entry.items())
    if (field != "dtype" && field != "shape" && field != "data_offsets")
      refuse(origin, where + " has a field " + in_quotes(field) +
                         "; dtype, shape and data_offsets are allowed");

  TensorInfo info;
  const json& dtype = entry["dtype"];
  if (!dtype.is_string())
    refuse(origin, where + ": dtype is a " + dtype.type_name() + ", a string is allowed");
  info.dtype = dtype.get<std::string>();
  const FileType* type = find_type(info.dtype);
  if (type == nullptr)
    refuse(origin,
           where + ": unknown dtype " + in_quotes(info.dtype) + "; allowed: " + type_names(false));

  const json& shape = entry["shape"];
  if (!shape.is_array())
    refuse(origin, where + ": shape is a " + shape.type_name() + ", an array is allowed");
  std::uint64_t bytes = type->bytes;
  for (const json& extent : shape) {
    info.shape.push_back(static_cast<std::int64_t>(count(extent, origin, where + ": an extent")));
    bool overflows =
        __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(info.shape.back()), &bytes);
    if (overflows || bytes > std::numeric_limits<std::int64_t>::max())
      refuse(origin, where + ": its shape counts more than 2^63 bytes");
  }

  const json& offsets = entry["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2)
    refuse(origin, where + ": data_offsets are not an array of two, [begin, end] is allowed");
  info.begin_byte = count(offsets[0], origin, where + ": the begin of data_offsets");
  info.end_byte = count(offsets[1], origin, where + ": the end of data_offsets");
  if (info.begin_byte > info.end_byte)
    refuse(origin, where + ": offsets " + interval(info.begin_byte, info.end_byte) + " decrease");
  if (info.end_byte - info.begin_byte != bytes)
    refuse(origin, where + ": offsets " + interval(info.begin_byte, info.end_byte) + " hold " +
                       std::to_string(info.end_byte - info.begin_byte) + " bytes, " + info.dtype +
                       " " + to_string(info.shape) + " needs " + std::to_string(bytes));
  return info;
}

// The tensors must tile the data exactly: no hole hides anything, no byte belongs to two.
void check_tiling(const std::map<std::string, TensorInfo>& tensors, std::uint64_t data_bytes,
                  const std::string& origin) {
  std::vector<const std::pair<const std::string, TensorInfo>*> order;
  order.reserve(tensors.size());
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->second.begin_byte, a->second.end_byte) <
           std::pair(b->second.begin_byte, b->second.end_byte);
  });
  std::uint64_t end = 0;
  const std::pair<const std::string, TensorInfo>* previous = nullptr;
  for (const auto* entry : order) {
    const auto& [name, info] = *entry;
    std::string where =
        "tensor " + in_quotes(name) + ": offsets " + interval(info.begin_byte, info.end_byte);
    if (info.end_byte > data_bytes)
      refuse(origin, where + " end beyond the data, which has " + std::to_string(data_bytes) +
                         " bytes; the file is cut short or its header lies");
    if (info.begin_byte < end)
      refuse(origin, where + " overlap " + in_quotes(previous->first) + " (" +
                         interval(previous->second.begin_byte, previous->second.end_byte) + ")");
    if (info.begin_byte > end)
      refuse(origin, where + " leave a gap: bytes " + interval(end, info.begin_byte) +
                         " belong to no tensor");
    end = info.end_byte;
    previous = entry;
  }
  if (end != data_bytes)
    refuse(origin, std::to_string(data_bytes - end) +
                       " bytes beyond the last tensor, which ends at " + std::to_string(end) +
                       "; none are allowed");
}

// A read-only mapping of a regular file.
class Mapping {
 public:
  Mapping(int fd, std::size_t size, const std::filesystem::path& path)
      : address_(::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0)), size_(size) {
    if (address_ == MAP_FAILED) fail(errno, path);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(address_, size_); }
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(address_), size_};
  }

 private:
  void* address_;
  std::size_t size_;
};

// The whole pages of a mapped tensor can go: whoever reads them again has them from the file.
void release_pages(const std::byte* data, std::size_t size) {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  auto end = (reinterpret_cast<std::uintptr_t>(data) + size) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

struct Descriptor {
  int fd = -1;
  explicit Descriptor(int fd) : fd(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

void write_all(int fd, const void* data, std::size_t size, const std::filesystem::path& path) {
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t n = ::write(fd, from, std::min<std::size_t>(size, 1 << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(errno, path);
    from += n;
    size -= static_cast<std::size_t>(n);
  }
}

}  // namespace

SafetensorsFile parse_safetensors(std::span<const std::byte> bytes, std::string origin,
                                  std::shared_ptr<const void> owner) {
  SafetensorsFile file;
  file.origin_ = std::move(origin);
  file.owner_ = std::move(owner);
  const std::string& at = file.origin_;
  if (bytes.size() < 8) refuse_short(at, bytes.size());
  std::uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kLongestHeader_bytes)
    refuse(at, "its header claims " + std::to_string(header_bytes) + " bytes, at most " +
                   std::to_string(kLongestHeader_bytes) +
                   " are allowed; it may not be a safetensors file");
  if (header_bytes > bytes.size() - 8)
    refuse(at, "its header claims " + std::to_string(header_bytes) + " bytes, " +
                   std::to_string(bytes.size() - 8) + " follow; the file is cut short");
  std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  if (text.empty() || text.front() != '{') refuse(at, "its header does not begin with {");
  json header = parse_json(text, "[safetensors] " + at + ": header");

  for (const auto& [name, entry] : header.items()) {
    if (name != "__metadata__") {
      file.tensors_.emplace(name, parse_tensor(name, entry, at));
      continue;
    }
    if (!entry.is_object())
      refuse(at, "__metadata__ is a " + std::string(entry.type_name()) + ", an object is allowed");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string())
        refuse(at, "__metadata__: " + in_quotes(key) + " is a " + value.type_name() +
                       ", a string is allowed");
      file.metadata_.emplace(key, value.get<std::string>());
    }
  }
  file.data_ = bytes.subspan(8 + header_bytes);
  check_tiling(file.tensors_, file.data_.size(), at);
  return file;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  Descriptor file(
      ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a pipe must not block
  struct stat status {};
  if (file.fd < 0 || ::fstat(file.fd, &status) != 0) fail(errno, path);
  if (S_ISDIR(status.st_mode)) fail(EISDIR, path);
  if (!S_ISREG(status.st_mode)) fail(EINVAL, path);
  auto size = static_cast<std::size_t>(status.st_size);
  if (size < 8) refuse_short(path.string(), size);
  auto mapping = std::make_shared<const Mapping>(file.fd, size, path);
  std::span<const std::byte> bytes = mapping->bytes();
  SafetensorsFile parsed = parse_safetensors(bytes, path.string(), std::move(mapping));
  parsed.mapped_ = true;
  return parsed;
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& entry : tensors_) names.push_back(entry.first);
  return names;
}

Array SafetensorsFile::tensor(const std::string& name) const {
  auto found = tensors_.find(name);
  if (found == tensors_.end()) refuse_unknown_name(origin_, name, names());
  const TensorInfo& info = found->second;
  const FileType* type = find_type(info.dtype);
  if (!type->dtype)
    refuse(origin_, "tensor " + in_quotes(name) + " is stored as " + info.dtype +
                        "; tensors that are read must be one of " + type_names(true));
  const std::byte* data = data_.data() + info.begin_byte;
  std::size_t size = info.end_byte - info.begin_byte;
  std::shared_ptr<const void> owner = owner_;
  if (mapped_)
    owner = {data, [file = owner_, data, size](const void*) { release_pages(data, size); }};
  // 8-byte headers and sorted tensors keep most files aligned; others are legal and get a copy.
  if (reinterpret_cast<std::uintptr_t>(data) % type->bytes == 0)
    return Array::wrap(data, info.shape, *type->dtype, std::move(owner));
  MutableArray copy(info.shape, *type->dtype);
  std::memcpy(copy.bytes(), data, size);
  return std::move(copy).freeze();
}

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, Array>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::string origin = path.string();
  // Wide types first, so that every tensor lies aligned behind a padded header.
  std::vector<const std::pair<const std::string, Array>*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return size_of(a->second.dtype()) > size_of(b->second.dtype());
  });
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const auto* entry : order) {
    const auto& [name, array] = *entry;
    if (name == "__metadata__") refuse(origin, "no tensor may be called \"__metadata__\"");
    if (lenscpp::numel(array.shape()) != array.numel())
      refuse(origin, "tensor " + in_quotes(name) + " holds no array");
    std::uint64_t end = offset + array.nbytes();
    header[name] = {{"dtype", file_type(array.dtype()).name},
                    {"shape", array.shape()},
                    {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const json::exception&) {
    refuse(origin, "a tensor's name or the metadata is not UTF-8");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  std::uint64_t header_bytes = text.size();
  if (header_bytes > kLongestHeader_bytes)
    refuse(origin, "its header would have " + std::to_string(header_bytes) + " bytes, at most " +
                       std::to_string(kLongestHeader_bytes) + " are allowed");

  static std::atomic<unsigned> counter{0};
  std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  std::filesystem::path temporary =
      folder / ("." + path.filename().string() + "." + std::to_string(::getpid()) + "." +
                std::to_string(counter++) + ".part");
  Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (file.fd < 0) fail(errno, temporary);
  try {
    write_all(file.fd, &header_bytes, 8, temporary);
    write_all(file.fd, text.data(), text.size(), temporary);
    for (const auto* entry : order)
      write_all(file.fd, entry->second.bytes(), entry->second.nbytes(), temporary);
    if (::fsync(file.fd) != 0) fail(errno, temporary);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail(errno, path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.fd < 0 || ::fsync(directory.fd) != 0) fail(errno, folder);
}

// ---- folders ----

namespace {

// tensor name -> shard, from model.safetensors.index.json.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& path) {
  std::string origin = path.string();
  json index = parse_json(read_text(path, kLongestIndex_bytes), "[safetensors] " + origin);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object())
    refuse(origin, "no object \"weight_map\" from tensor names to files");
  std::map<std::string, std::string> shards;
  for (const auto& [name, value] : index["weight_map"].items()) {
    if (!value.is_string())
      refuse(origin, "tensor " + in_quotes(name) + ": its file is a " + value.type_name() +
                         ", a string is allowed");
    auto shard = value.get<std::string>();
    // A plain name: neither "../" nor an absolute path nor a NUL leads out of the folder.
    if (shard.empty() || shard == "." || shard == ".." ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != shard.npos)
      refuse(origin, "tensor " + in_quotes(name) + ": file " + in_quotes(shard) +
                         " is not the name of a file in this folder");
    shards.emplace(name, shard);
  }
  if (shards.empty()) refuse(origin, "its \"weight_map\" is empty");
  return shards;
}

// What else pickled weights are called: a dictionary of tensors, saved by hand.
bool is_pickled(const std::filesystem::path& path) {
  for (const char* ending : {".bin", ".pt", ".pth", ".ckpt"})
    if (path.extension() == ending) return true;
  return false;
}

[[noreturn]] void refuse_pickled(const std::string& folder, const std::string& file,
                                 const std::string& line) {
  refuse(folder, "only pickled weights (" + file +
                     "), which run code when they are opened; allowed: safetensors. To convert: "
                     "python -c \"" +
                     line + "\"");
}

[[noreturn]] void refuse_folder(const std::filesystem::path& folder) {
  std::string at = folder.string();
  for (const char* pickled : {"pytorch_model.bin", "pytorch_model.bin.index.json"})
    if (std::filesystem::exists(folder / pickled))
      refuse_pickled(at, pickled,
                     "from transformers import AutoModelForCausalLM as M; M.from_pretrained('" +
                         at + "').save_pretrained('" + at + "', safe_serialization=True)");
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (is_pickled(entry.path())) files.insert(entry.path().filename().string());
  if (!files.empty())
    refuse_pickled(at, *files.begin(),
                   "import torch; from safetensors.torch import save_file; save_file({k: "
                   "v.clone().contiguous() for k, v in torch.load('" +
                       (folder / *files.begin()).string() +
                       "', map_location='cpu', weights_only=True).items()}, '" +
                       (folder / kSingle).string() + "')");
  throw std::system_error(
      ENOENT, std::generic_category(),
      "[safetensors] " + at + ": neither " + std::string(kSingle) + " nor " + std::string(kIndex));
}

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& folder) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0) fail(errno, folder);
  if (!S_ISDIR(status.st_mode)) fail(ENOTDIR, folder);
  Checkpoint checkpoint;
  checkpoint.origin_ = folder.string();
  const std::string& at = checkpoint.origin_;
  bool single = std::filesystem::exists(folder / kSingle);
  bool sharded = std::filesystem::exists(folder / kIndex);
  if (single && sharded)
    refuse(at, "both " + std::string(kSingle) + " and " + std::string(kIndex) +
                   ", which may be different models; one is allowed");
  if (single) {
    checkpoint.files_.push_back(SafetensorsFile::open(folder / kSingle));
    for (const std::string& name : checkpoint.files_[0].names())
      checkpoint.file_of_.emplace(name, 0);
    return checkpoint;
  }
  if (!sharded) refuse_folder(folder);

  std::map<std::string, std::string> shard_of = read_weight_map(folder / kIndex);
  std::set<std::string> shards;
  for (const auto& entry : shard_of) shards.insert(entry.second);
  for (const std::string& shard : shards) {
    if (!std::filesystem::exists(folder / shard))
      refuse(at,
             "shard " + in_quotes(shard) + ", named by " + std::string(kIndex) + ", is missing");
    SafetensorsFile file = SafetensorsFile::open(folder / shard);
    for (const std::string& name : file.names()) {
      auto expected = shard_of.find(name);
      if (expected == shard_of.end())
        refuse(at, "shard " + in_quotes(shard) + " holds tensor " + in_quotes(name) + ", which " +
                       std::string(kIndex) + " does not name");
      if (expected->second != shard)
        refuse(at, "shard " + in_quotes(shard) + " holds tensor " + in_quotes(name) + ", which " +
                       std::string(kIndex) + " puts in " + in_quotes(expected->second));
      checkpoint.file_of_.emplace(name, checkpoint.files_.size());
    }
    checkpoint.files_.push_back(std::move(file));
  }
  for (const auto& [name, shard] : shard_of)
    if (!checkpoint.has(name))
      refuse(at, "tensor " + in_quotes(name) + " is not in shard " + in_quotes(shard) + ", where " +
                     std::string(kIndex) + " puts it");
  return checkpoint;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(file_of_.size());
  for (const auto& entry : file_of_) names.push_back(entry.first);
  return names;
}

const SafetensorsFile& Checkpoint::file(const std::string& name) const {
  auto found = file_of_.find(name);
  if (found == file_of_.end()) refuse_unknown_name(origin_, name, names());
  return files_[found->second];
}

Array Checkpoint::tensor(const std::string& name) const { return file(name).tensor(name); }
const TensorInfo& Checkpoint::info(const std::string& name) const {
  return file(name).tensors().at(name);
}
const std::string& Checkpoint::origin(const std::string& name) const { return file(name).origin(); }

}  // namespace lenscpp
