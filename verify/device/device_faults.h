// Faults of real devices as rules on what a device computes, copies or returns: one row of the
// table a silent bug that was reported, with its issue number, its trigger and its recipe. They sit
// inside an operator or a copy and see it through DeviceCall, so that none of this knows torch.
// Faults that change a whole tensor at the tap, on any device, are in faults.h.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/config.h"
#include "hooks/hook_point.h"
#include "verify/device/faults.h"

namespace lenscpp {

/// A tensor that an operator is handed or makes, as it lies in memory.
struct Operand {
  std::string name;  // as PyTorch's schema calls it: "self", "mat2", "out"
  Shape shape, strides;
  std::int64_t offset = 0;  // elements from the beginning of its memory
  DType dtype = DType::f32;
  bool boolean = false;   // true where PyTorch holds bool: as int64 here
  bool on_device = true;  // false: a number in a CPU tensor of no dimensions
  bool given = false;     // an output that exists before the call: `out`, a copy's target
  bool in_place = false;  // an output that is written over an input
  bool contiguous() const;
  bool expanded() const;  // some stride is 0 although the extent is not 1
};

/// One call of an operator, or one copy: "copy_to_device", "copy_to_host", "copy_on_device".
class DeviceCall {
 public:
  virtual ~DeviceCall() = default;
  /// Without namespace and overload: "addmm".
  virtual const std::string& op() const = 0;
  /// Tensors that are read, in the order of the schema, members of lists one by one.
  virtual const std::vector<Operand>& inputs() const = 0;
  /// The values of an input, in the order of its shape.
  virtual Array input(std::size_t i) const = 0;
  /// All that lies in the memory of an input, in the order of the memory.
  virtual Array memory(std::size_t i) const = 0;
  /// What the operator reads instead; shape and dtype as they are.
  virtual void replace(std::size_t i, const Array& values) = 0;
  /// A number among the arguments: "alpha", "eps", "non_blocking" (0 or 1).
  virtual std::optional<double> scalar(std::string_view name) const = 0;
  virtual void set_scalar(std::string_view name, double value) = 0;
  /// A word among the arguments: "approximate"; empty where there is none.
  virtual std::string word(std::string_view name) const = 0;

  /// What is written: before the operator has run only what is `given`.
  virtual const std::vector<Operand>& outputs() const = 0;
  virtual Array output(std::size_t i) const = 0;
  virtual void set_output(std::size_t i, const Array& values) = 0;
  /// What stood where output i is written, once a fault is due and where it was given; else null.
  virtual const Array* before(std::size_t i) const = 0;

  /// Tensors in the device's memory that are none of this call's outputs, oldest first, of those
  /// that this thread made since it armed faults.
  virtual std::int64_t neighbours() const = 0;
  /// Overwrites the first `elements` of a neighbour; returns how many bytes that changed.
  virtual std::int64_t clobber(std::int64_t neighbour, std::int64_t elements, double value) = 0;
};

/// What an operator was asked before, for faults that remember.
struct PastCall {
  std::vector<Shape> shapes;
  std::map<std::string, double> scalars;
};

/// What one fault sees of one call.
class DeviceFaultContext {
 public:
  DeviceCall& call;
  std::int64_t number;  // of the calls of this operator since the fault was armed, from 0
  const PastCall* past = nullptr;     // the call of this operator before; null: none
  const PastCall* first = nullptr;    // the first one; null: this is it
  std::optional<Config> config = {};  // of the model that runs
  /// Results of earlier calls that such a block of memory last held, by bytes; null: none.
  const std::map<std::pair<DType, std::int64_t>, Array>* freed = nullptr;

  double get(std::string_view name) const;
  std::int64_t whole(std::string_view name) const;
  bool always() const { return get("always") != 0; }
  double noise();  // uniform in [-1, 1)
  std::int64_t draw(std::int64_t n);
  /// n numbers of an earlier result, as memory of that size holds them after it was freed; zeros
  /// where there was none.
  std::vector<double> stale(DType dtype, std::int64_t n) const;
  /// Bytes changed elsewhere than in the outputs.
  std::int64_t clobbered = 0;

  const FaultSpec* spec = nullptr;
  std::span<const FaultParameter> parameters = {};
  std::mt19937_64* random = nullptr;
};

/// One row of the table. `before` changes what the operator reads, `after` what it made; either may
/// be null.
struct DeviceFaultInfo {
  std::string_view id;    // of the catalogue: "S1"
  std::string_view name;  // "ignores_weight_strides"
  std::string_view description, source, trigger, recipe;
  std::span<const std::string_view> operators;  // in which it sits
  std::span<const FaultParameter> parameters;
  bool (*triggers)(DeviceFaultContext&);
  void (*before)(DeviceFaultContext&);
  void (*after)(DeviceFaultContext&);
};

std::span<const DeviceFaultInfo> device_fault_catalogue();
/// Parameters that every row takes: "call", "probability", "always".
std::span<const FaultParameter> device_fault_parameters();
/// Whether a name is an id or a name of this table.
bool is_device_fault(std::string_view name);
/// By id or name. Throws std::invalid_argument naming the nearest.
const DeviceFaultInfo& device_fault_info(std::string_view name);

/// Device faults armed for one run or until they are disarmed. The device calls `before` and
/// `after` around every operator; the run tells which tensor comes next. Deterministic; one run at
/// a time, all of it in the thread that armed them.
class DeviceFaults {
 public:
  /// One call in which a fault changed something.
  struct Firing {
    std::string fault, op;
    std::int64_t call;           // of the operator, since armed, from 0
    std::optional<TensorId> id;  // the tensor being computed; unset: outside of a run
    std::int64_t changed;        // elements of the outputs, bytes of what was clobbered
  };

  /// Without a config nothing can be said about hooks and layers. Throws std::invalid_argument
  /// (unknown fault, parameter or hook) or std::out_of_range (layer), naming what is allowed.
  explicit DeviceFaults(std::vector<FaultSpec> specs, std::optional<Config> config = {});

  /// A run begins whose tensors arrive in this order; `passed`: one has.
  void begin(const std::vector<TensorId>& order);
  void passed(const TensorId& id);
  void end();

  /// Every call of the device, in four steps. `begin_call`: whether any fault is due in it; only
  /// then `before` and `after` the operator ran. `end_call`: how many elements of the outputs
  /// differ from what they would be without the faults; a fault that changed no bit has not fired.
  bool begin_call(DeviceCall& call);
  void before(DeviceCall& call);
  void after(DeviceCall& call);
  void end_call(DeviceCall& call, std::int64_t changed);

  const std::vector<Firing>& log() const { return log_; }
  std::int64_t fired() const { return static_cast<std::int64_t>(log_.size()); }
  const std::vector<FaultSpec>& specs() const { return specs_; }

 private:
  struct Armed {
    const DeviceFaultInfo* info;
    std::size_t spec;
    std::optional<FaultPlace> place;
    std::int64_t met = 0;  // calls that met the condition
    bool due = false;
    std::int64_t clobbered = 0;
    std::mt19937_64 random;
  };
  std::optional<TensorId> tensor_of(const DeviceCall& call) const;
  bool in_place_of(const Armed& armed, const DeviceCall& call) const;
  DeviceFaultContext context(Armed& armed, DeviceCall& call);

  std::vector<FaultSpec> specs_;
  std::optional<Config> config_;
  std::vector<Armed> armed_;
  std::vector<TensorId> order_;
  std::map<TensorId, std::size_t> place_;
  std::size_t next_ = 0;
  bool running_ = false;
  std::map<std::string, std::int64_t, std::less<>> calls_;
  std::map<std::string, PastCall, std::less<>> first_, past_;
  std::map<std::pair<DType, std::int64_t>, Array> freed_;
  std::vector<Firing> log_;
};

}  // namespace lenscpp
