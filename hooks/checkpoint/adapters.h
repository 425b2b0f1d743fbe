// Adapters in peft's format (adapter_config.json and adapter_model.safetensors): LoRA and DoRA,
// merged into a checkpoint's tensors one by one as they are read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "hooks/checkpoint/adapter_config.h"
#include "hooks/checkpoint/safetensors.h"

namespace lenscpp {

/// An adapter's folder, opened: its config and the headers of its tensors.
class Adapter {
 public:
  /// Throws what parse_adapter_config throws; std::invalid_argument for pickled tensors (with the
  /// line that converts them) and for tensors that are no LoRA's; std::system_error when a file
  /// cannot be read.
  static Adapter open(const std::filesystem::path& folder);

  const AdapterConfig& config() const { return config_; }
  const SafetensorsFile& file() const { return file_; }
  /// The folder, for error messages and records.
  const std::string& origin() const { return origin_; }
  /// XXH3-128 over adapter_config.json and all tensors.
  std::string digest() const;
  /// Bytes of its tensors, and elements of the weights that they change: from headers alone.
  std::int64_t nbytes() const;
  std::int64_t merged_elements() const;

 private:
  Adapter(std::string origin, std::string text, SafetensorsFile file, AdapterConfig config);

  std::string origin_, text_;
  SafetensorsFile file_;
  AdapterConfig config_;
};

/// One weight that an adapter changes, with all that it was made of: enough to make it again.
struct MergedTensor {
  std::string name;      // in the checkpoint
  Array base, result;    // as stored; merged, rounded once
  Array A, B;            // [rank, in], [out, rank]; empty where the weight is replaced
  Array magnitude;       // [out]; empty without DoRA
  Array replacement;     // of the shape of base; empty where A and B are added
  double rank, alpha;    // as the config says
  bool rank_stabilized;  // alpha / sqrt(rank) instead of alpha / rank
  bool in_out;           // base is [in, out], else [out, in]
};

/// An adapter laid onto a checkpoint.
class Merge {
 public:
  /// `in_out`: the model's matrices are [in, out], as GPT-2's Conv1D has them. Compares names and
  /// shapes before any tensor is read. Throws std::invalid_argument naming the tensor: of a module
  /// that the checkpoint has not, of another shape, that adapter_config.json does not ask for, or
  /// that it asks for and is missing.
  Merge(const Adapter& adapter, const Checkpoint& checkpoint, bool in_out);

  bool changes(const std::string& name) const { return changes_.contains(name); }
  std::vector<std::string> changed() const;
  const std::string& origin() const { return adapter_.origin(); }
  /// The tensor `name` of the checkpoint with the adapter in it: computed in float64, rounded once
  /// to `dtype`. DoRA: magnitude (W + delta) / norm(W + delta), norms over each output's inputs.
  MergedTensor merged(const std::string& name, const Array& base, DType dtype) const;

 private:
  struct Change {
    std::string A, B, magnitude, replacement;  // keys of the adapter's file; empty: none
    std::string module;                        // as the adapter calls it
  };
  Change& change_of(const std::string& key, const std::string& tensor);
  void add(const std::string& key);
  void check(const std::string& name, const Change& change) const;
  void require_targets() const;
  void require_biases() const;
  std::string in_checkpoint(const std::string& tensor) const;
  std::string as_adapter_says(const std::string& tensor) const;
  [[noreturn]] void refuse(const std::string& what) const;

  const Adapter& adapter_;
  const Checkpoint& checkpoint_;
  bool in_out_;
  std::string added_,
      dropped_;  // prefixes: of the adapter's names alone, of the checkpoint's alone
  std::map<std::string, Change> changes_;
};

}  // namespace lenscpp
