// Arrays to torch.Tensor and back, below every dispatch mode; JSON to dicts and lists.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "hooks/transformer/torch_array.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

// Neither Python's dispatch modes nor functorch nor autocast see what is done here.
struct BelowModes {
  c10::impl::ExcludeDispatchKeyGuard guard{
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                           c10::DispatchKey::PythonDispatcher,
                           c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                           c10::DispatchKey::FuncTorchDynamicLayerBackMode}) |
      c10::autocast_dispatch_keyset};
};

const at::Tensor& plain_tensor(py::handle object, std::string_view what) {
  if (!THPVariable_Check(object.ptr()))
    throw py::type_error(std::string(what) + ": needed: a torch.Tensor; found: " + kind_of(object));
  const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
  if (tensor.layout() != at::kStrided || tensor.is_meta() || tensor.is_quantized() ||
      tensor.is_nested() || tensor.unsafeGetTensorImpl()->is_python_dispatch() ||
      tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper) ||
      tensor.key_set().has(c10::DispatchKey::FuncTorchBatched))
    throw py::type_error(
        std::string(what) + ": needed: a dense torch.Tensor with values of its own; found: " +
        kind_of(object) + " that is sparse, meta, quantized, nested, or stands for another");
  return tensor;
}

// The elements in memory that nobody else can write to.
Array copied(const at::Tensor& tensor) {
  at::Tensor host = tensor.to(at::kCPU).resolve_neg().contiguous();
  MutableArray own(Shape(host.sizes().begin(), host.sizes().end()), to_dtype(host.scalar_type()));
  if (own.numel() > 0) std::memcpy(own.bytes(), host.const_data_ptr(), host.nbytes());
  return std::move(own).freeze();
}

}  // namespace

py::object to_python(const Array& array) {
  at::TensorBase own = at::detail::empty_cpu(array.shape(), to_scalar_type(array.dtype()));
  if (array.numel() > 0) std::memcpy(own.mutable_data_ptr(), array.bytes(), array.nbytes());
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(own));
}

bool is_tensor(py::handle object) { return THPVariable_Check(object.ptr()); }

Array to_array(py::handle object, std::string_view what) {
  at::Tensor tensor = plain_tensor(object, what);
  py::gil_scoped_release release;
  BelowModes below;
  c10::ScalarType type = tensor.scalar_type();
  if (type != at::kFloat && type != at::kDouble && type != at::kBFloat16 && type != at::kHalf &&
      type != at::kLong)
    throw std::invalid_argument(
        std::string(what) + ": a tensor of " + c10::toString(type) +
        "; allowed: float32, float64, bfloat16, float16 (int64 for hook_tokens)");
  return copied(tensor.detach());
}

Array to_ids(py::handle object, std::string_view what) {
  at::Tensor tensor = plain_tensor(object, what);
  if (!c10::isIntegralType(tensor.scalar_type(), /*includeBool=*/false))
    throw py::type_error(std::string(what) + ": token ids are integers; found: a torch.Tensor of " +
                         c10::toString(tensor.scalar_type()));
  py::gil_scoped_release release;
  BelowModes below;
  return copied(tensor.detach().to(at::kLong));
}

py::object to_python(const nlohmann::json& json) {
  switch (json.type()) {
    case nlohmann::json::value_t::null:
    case nlohmann::json::value_t::discarded:
      return py::none();
    case nlohmann::json::value_t::boolean:
      return py::bool_(json.get<bool>());
    case nlohmann::json::value_t::number_integer:
      return py::int_(json.get<std::int64_t>());
    case nlohmann::json::value_t::number_unsigned:
      return py::int_(json.get<std::uint64_t>());
    case nlohmann::json::value_t::number_float:
      return py::float_(json.get<double>());
    case nlohmann::json::value_t::string:
      return py::str(json.get_ref<const std::string&>());
    case nlohmann::json::value_t::binary:
      break;
    case nlohmann::json::value_t::array: {
      py::list list;
      for (const auto& item : json) list.append(to_python(item));
      return list;
    }
    case nlohmann::json::value_t::object: {
      py::dict dict;
      for (const auto& [key, item] : json.items()) dict[py::str(key)] = to_python(item);
      return dict;
    }
  }
  throw std::logic_error("[json] a value that no record of ours has");
}

}  // namespace lenscpp::python
