// How a checkpoint is read: all of it or its first layers, with or without an adapter.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "hooks/checkpoint/adapters.h"
#include "hooks/checkpoint/weights.h"

namespace lenscpp {

/// What load_weights takes beside a folder.
struct Loading {
  DType dtype;
  std::optional<std::int64_t> first_n_layers = {};  // of the others nothing but headers is read
  const Adapter* adapter = nullptr;
  /// Called with each merged weight, which a check makes again; what it throws ends the loading.
  std::function<void(const MergedTensor&)> on_merged = {};
};

/// load_weights, with an adapter merged into the checkpoint's tensors before they are rounded.
/// Throws what load_weights and Merge throw; std::out_of_range for layers that are not there.
Weights load_weights(const std::filesystem::path& folder, const Loading& loading);

}  // namespace lenscpp
