// Operators of the simulated device: every native one runs on host aliases of device memory, and
// its results are written into device memory; those on the list of missing ones take PyTorch's way
// through the CPU, or are refused as Apple's device refuses them.
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "verify/device/simulated/call.h"
#include "verify/device/simulated/memory.h"
#include "verify/device/simulated/state.h"

namespace lenscpp::simulated {
namespace {

constexpr c10::DispatchKeySet kDevice(c10::DispatchKey::PrivateUse1);

// Copies that PyTorch's fallback makes are its own, not the user's.
thread_local bool inside_fallback = false;

// On the CPU there is neither autograd nor autocast for what has passed both on the device.
struct OnHost {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

using Compute = std::function<std::vector<c10::IValue>(const std::vector<c10::IValue>&)>;

// The tensors of one result; a number counts as one, so that a changed one is noticed.
void add_tensors(const c10::IValue& value, std::vector<at::Tensor>& tensors) {
  if (value.isTensor() && value.toTensor().defined()) tensors.push_back(value.toTensor());
  if (value.isScalar()) tensors.push_back(at::scalar_tensor(value.toScalar(), at::kDouble));
  if (value.isTensorList())
    for (const at::Tensor& t : value.toTensorVector()) tensors.push_back(t);
}

// Runs a call with what faults make of it. `place` puts the results of the operator where they
// belong and returns the tensors among them.
template <class Place>
void with_faults(Call& call, const Compute& compute, const Place& place) {
  std::shared_ptr<DeviceFaults> faults = inside_fallback ? nullptr : state().faults();
  if (!faults || !call.known_to_faults()) {
    place(compute(call.host()));
    return;
  }
  std::lock_guard lock(state().faults_mutex());
  bool due = faults->begin_call(call);
  std::vector<at::Tensor> clean;
  if (due) {
    std::vector<c10::IValue> arguments = call.clones();
    for (const c10::IValue& value : compute(arguments)) add_tensors(value, clean);
    call.keep_before();
    faults->before(call);
  }
  call.set_outputs(place(compute(call.host())));
  if (!call.known_to_faults()) return;  // complex results, of rfft
  if (due) faults->after(call);
  faults->end_call(call, due ? call.differing(clean) : 0);
}

void check_devices(const c10::FunctionSchema& schema, const std::vector<Argument>& arguments) {
  for (const Argument& argument : arguments) {
    auto check = [&](const at::Tensor& t) {
      bool scalar = t.defined() && t.device().is_cpu() && t.dim() == 0 && !argument.written;
      bool index = argument.name == "indices";
      TORCH_CHECK(!t.defined() || t.device().is_privateuseone() || scalar || index,
                  "Expected all tensors to be on the same device, but found at least two devices, "
                  "simulated:0 and ",
                  t.device(), "! (when checking argument for argument ", argument.name,
                  " in method wrapper_simulated_", leaf_name(schema.name()), ")");
    };
    if (argument.value.isTensor()) check(argument.value.toTensor());
    if (argument.value.isTensorList())
      for (const at::Tensor& t : argument.value.toTensorVector()) check(t);
  }
}

// A result of the host as a tensor of the device, laid out alike.
at::Tensor to_device(const at::Tensor& host) {
  at::Tensor device = at::empty_strided(host.sizes(), host.strides(),
                                        host.options().device(c10::DeviceType::PrivateUse1));
  if (host.numel() > 0)
    std::memcpy(device.storage().mutable_data(), host.const_data_ptr(),
                std::min(device.storage().nbytes(),
                         host.storage().nbytes() - host.storage_offset() * host.itemsize()));
  return device;
}

void run_native(const c10::OperatorHandle& op, torch::jit::Stack* stack,
                std::vector<Argument> arguments) {
  const c10::FunctionSchema& schema = op.schema();
  Call call(leaf_name(schema.name()), std::move(arguments));
  auto compute = [&](const std::vector<c10::IValue>& host) {
    OnHost guards;
    torch::jit::Stack values = host;
    op.callBoxed(values);
    return values;
  };
  auto place = [&](std::vector<c10::IValue> results) {
    std::vector<at::Tensor> written = call.written(), outputs;
    std::size_t next = 0;
    for (std::size_t i = 0; i < results.size(); ++i) {
      const c10::AliasInfo* alias = schema.returns()[i].alias_info();
      TORCH_CHECK(alias == nullptr || alias->isWrite(), "[simulated] ", schema.name(),
                  " makes a view and is not registered for this device");
      if (alias != nullptr) {
        results[i] = written.at(next++);
      } else if (results[i].isTensor() && results[i].toTensor().defined()) {
        results[i] = to_device(results[i].toTensor());
      } else if (results[i].isTensorList()) {
        std::vector<at::Tensor> members;
        for (const at::Tensor& t : results[i].toTensorVector()) members.push_back(to_device(t));
        results[i] = members;
      }
      add_tensors(results[i], outputs);
    }
    torch::jit::drop(*stack, schema.arguments().size());
    for (c10::IValue& value : results) stack->push_back(std::move(value));
    return outputs;
  };
  with_faults(call, compute, place);
}

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack, bool allowed) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      allowed, "The operator '", op.schema().operator_name(),
      "' is not currently implemented for the MPS device. If you want this op to be considered for "
      "addition please comment on https://github.com/pytorch/pytorch/issues/141287 and mention "
      "use-case, that resulted in missing op as well as commit hash. As a temporary fix, you can "
      "set the environment variable `PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback "
      "for this op. WARNING: this will be slower than running natively on MPS.");
  TORCH_WARN("The operator '", op.schema().operator_name(),
             "' is not currently supported on the MPS backend and will fall back to run on the "
             "CPU. This may have performance implications.");
  struct Inside {
    bool before = std::exchange(inside_fallback, true);
    ~Inside() { inside_fallback = before; }
  } inside;
  at::native::cpu_fallback(op, stack);
}

// Every operator that is not registered by itself below.
void any_operator(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::FunctionSchema& schema = op.schema();
  std::vector<Argument> arguments;
  std::size_t n = schema.arguments().size();
  for (std::size_t i = 0; i < n; ++i) {
    const c10::Argument& a = schema.arguments()[i];
    bool written = a.alias_info() != nullptr && a.alias_info()->isWrite();
    const c10::IValue& value = (*stack)[stack->size() - n + i];
    bool tensor = value.isTensor() && value.toTensor().defined();
    arguments.push_back({a.name(), value, !(written && a.kwarg_only()), written && tensor});
  }
  check_devices(schema, arguments);
  std::string name = leaf_name(schema.name());
  if (!inside_fallback) state().count(name);
  auto held = state().limits();
  const SimulatedLimits& limits = *held;
  if (name == limits.aborts_at) {
    std::fprintf(stderr, "failed assertion `simulated: %s aborts the process'\n", name.c_str());
    std::abort();
  }
  while (name == limits.hangs_at) std::this_thread::sleep_for(std::chrono::seconds(1));
  if (std::ranges::find(limits.missing, name) != limits.missing.end())
    return fall_back(op, stack, limits.fallback);
  run_native(op, stack, std::move(arguments));
}

void check_dtype(c10::ScalarType type) {
  TORCH_CHECK_TYPE(type != at::kDouble || state().limits()->float64,
                   "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't "
                   "support float64. Please use float32 instead.");
}

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>,
                 std::optional<c10::MemoryFormat> format) {
  c10::ScalarType type = c10::dtype_or_default(dtype);
  check_dtype(type);
  return at::detail::empty_generic(size, &memory_of_device(), kDevice, type, format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                         std::optional<c10::Device>, std::optional<bool>) {
  c10::ScalarType type = c10::dtype_or_default(dtype);
  check_dtype(type);
  return at::detail::empty_strided_generic(size, stride, &memory_of_device(), kDevice, type);
}

const char* copy_name(const at::Tensor& from, const at::Tensor& to) {
  if (from.device().is_cpu()) return "copy_to_device";
  return to.device().is_cpu() ? "copy_to_host" : "copy_on_device";
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool non_blocking) {
  std::string name = copy_name(self, dst);
  if (!inside_fallback) state().count(name);
  Call call(name, {{"self", self, true, false},
                   {"out", dst, false, true},
                   {"non_blocking", non_blocking, true, false}});
  auto compute = [](const std::vector<c10::IValue>& host) {
    OnHost guards;
    at::Tensor to = host[1].toTensor();
    to.copy_(host[0].toTensor());
    return std::vector<c10::IValue>{to};
  };
  with_faults(call, compute,
              [&](const std::vector<c10::IValue>&) { return std::vector<at::Tensor>{dst}; });
  return dst;
}

const at::Tensor& resize(const at::Tensor& self, c10::IntArrayRef size,
                         std::optional<c10::MemoryFormat>) {
  std::size_t elements = self.storage_offset();
  elements += static_cast<std::size_t>(c10::multiply_integers(size));
  resize_storage(self.storage(), elements * self.itemsize());
  self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (dst.sizes() != self.sizes()) resize(dst, self.sizes(), {});
  return copy_from(self, dst, false);
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage source, std::int64_t offset,
                        c10::IntArrayRef size, c10::IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (stride.empty() && !size.empty()) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return self;
}

}  // namespace

void resize_storage(const c10::Storage& storage, std::size_t bytes) {
  c10::StorageImpl* impl = storage.unsafeGetStorageImpl();
  if (bytes <= impl->nbytes()) return;
  c10::DataPtr larger = memory_of_device().allocate(bytes);
  if (impl->nbytes() > 0) std::memcpy(larger.get(), impl->data(), impl->nbytes());
  impl->set_data_ptr_noswap(std::move(larger));
  impl->set_nbytes(bytes);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("resize_", &resize);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_.source_Storage", [](at::Tensor& self, c10::Storage source) -> at::Tensor& {
    auto n = static_cast<std::int64_t>(source.nbytes() / self.itemsize());
    return set_storage(self, std::move(source), 0, {n}, {1});
  });
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  // PyTorch would take these apart, or hand them over as their variants with `out`: one leaf each.
  for (const char* name : {"native_layer_norm",
                           "addmm",
                           "mm",
                           "bmm",
                           "baddbmm",
                           "_softmax",
                           "_log_softmax",
                           "gelu",
                           "silu",
                           "relu",
                           "tanh",
                           "exp",
                           "erf",
                           "sigmoid",
                           "add.Tensor",
                           "sub.Tensor",
                           "mul.Tensor",
                           "div.Tensor",
                           "addcmul",
                           "reciprocal",
                           "rsqrt",
                           "sqrt",
                           "abs",
                           "sum.dim_IntList",
                           "mean.dim",
                           "index_select",
                           "cat",
                           "where.self",
                           "triu",
                           "tril",
                           "cumsum",
                           "masked_fill.Scalar",
                           "eq.Scalar",
                           "ne.Scalar",
                           "elu",
                           "softplus"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&any_operator>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_operator>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

}  // namespace lenscpp::simulated
