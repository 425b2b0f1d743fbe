// Faults as devices make them, injected into a run's tensors at the tap: to show that a run with
// wrong numbers is refused, and where. Recipes and issue numbers: the working list of real bugs of
// backends. Not a simulation of a device: whole tensors are changed after they were computed,
// before anybody reads them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"
#include "hooks/hook_point.h"

namespace lenscpp {

/// One fault to inject. What is not given is chosen by `seed`, or is the default of the table.
struct FaultSpec {
  std::string name;  // of the table
  std::map<std::string, double> parameters = {};
  /// A full hook name, or one without its layer ("attn.hook_z", "hook_attn_out", "z"); internal
  /// links such as "ln1.out" too. Unset: every site where the fault applies.
  std::optional<std::string> hook = {};
  std::optional<std::int64_t> layer = {};  // negative from the end; unset: every layer
  std::uint64_t seed = 0;
  std::int64_t stage = 0;  // of an edited tensor: 0 as computed, n after the n-th edit
};

/// One parameter of a fault. Whole numbers count or index something.
struct FaultParameter {
  std::string_view name, meaning;
  std::optional<double> preset = {};  // unset: chosen by the seed, or nothing, as `meaning` says
  bool whole = false;
  std::optional<double> minimum = {};  // what is less is refused; unset: anything goes
};

/// What a fault sees: the tensor, its own parameters, and what passed the tap before.
class FaultContext {
 public:
  FaultContext(const TensorId& id, const Array& value, const FaultSpec& spec,
               std::span<const FaultParameter> parameters);

  const TensorId& id() const { return id_; }
  const Array& value() const { return value_; }
  /// A tensor of the same shape and dtype that passed before; null when there is none.
  const Array* stale = nullptr;

  /// The parameter as given, else as preset.
  std::optional<double> get(std::string_view name) const;
  /// A parameter that indexes `extent` things, or one drawn by the seed. Throws std::out_of_range.
  std::int64_t index(std::string_view name, std::int64_t extent);
  /// In [0, n), and uniform in [-1, 1).
  std::int64_t draw(std::int64_t n);
  double noise();

 private:
  const TensorId& id_;
  const Array& value_;
  const FaultSpec& spec_;
  std::span<const FaultParameter> parameters_;
  std::mt19937_64 random_;
};

/// One row of the table.
struct FaultInfo {
  std::string_view name, description;
  std::string_view source;  // of the like in the wild: issue numbers, or what it stands for
  std::span<const FaultParameter> parameters;
  bool (*applies)(Site);
  MutableArray (*apply)(FaultContext&);  // the faulted value: one function a fault
};

/// Where a spec's hook and layer are in a model.
struct FaultPlace {
  std::optional<Site> site = {};           // unset: everywhere
  std::optional<std::int64_t> layer = {};  // unset: in every layer
  /// Whether a tensor is there.
  bool holds(const TensorId& id) const {
    if (site && *site != id.site) return false;
    return !layer || (info(id.site).per_layer && *layer == id.layer);
  }
};
/// Throws std::invalid_argument for a hook that the model has not, naming the nearest of `allowed`,
/// std::out_of_range for a layer.
FaultPlace place_of(const FaultSpec& spec, const Config& config,
                    std::span<const std::string> allowed);
/// Throws std::invalid_argument: a parameter that is unknown, not finite, not whole or too small.
void check_parameters(const FaultSpec& spec, std::span<const FaultParameter> parameters);

std::span<const FaultInfo> fault_catalogue();
/// Throws std::invalid_argument naming the nearest faults.
const FaultInfo& fault_info(std::string_view name);

/// Injects faults into the tensors of one run at a time. Deterministic: what is drawn depends on
/// the seed and on the tensor, not on what ran before. Not for use from two threads at once.
class FaultInjector {
 public:
  /// One time that a fault changed a tensor. A fault that leaves every bit as it was has not fired.
  struct Firing {
    std::string fault;
    TensorId id;
    std::int64_t changed;  // elements
  };

  /// Throws std::invalid_argument (unknown fault, parameter or hook, a fault that cannot occur at
  /// the hook) or std::out_of_range (layer), naming what is allowed.
  FaultInjector(std::vector<FaultSpec> specs, const Config& config);

  /// Whether calling the injector with this tensor can do anything: nothing needs be copied
  /// otherwise.
  bool wants(const TensorId& id) const;
  /// The faulted value; `value` itself, the same handle, where no fault changes it. Throws
  /// std::out_of_range when a parameter is beyond the tensor's extents.
  Array operator()(const TensorId& id, const Array& value);

  std::int64_t fired() const { return static_cast<std::int64_t>(log_.size()); }
  const std::vector<Firing>& log() const { return log_; }
  /// Full names of the tensors that were changed, in order, each once.
  std::vector<std::string> fired_names() const;

 private:
  struct Armed {
    const FaultInfo* info;
    FaultSpec spec;
    FaultPlace place;
    bool matches(const TensorId& id) const;
  };

  const Array* stale_for(const TensorId& id, const Array& value) const;
  void remember(const TensorId& id, const Array& value);

  std::vector<Armed> armed_;
  bool remembers_ = false;
  std::map<std::pair<Site, std::int64_t>, Array> last_at_site_;  // by site and stage
  std::map<std::pair<DType, Shape>, Array> last_of_shape_;
  std::vector<Firing> log_;
};

}  // namespace lenscpp
