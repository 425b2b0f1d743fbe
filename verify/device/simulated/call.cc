// Arguments and results of one call, between tensors and arrays.
#include "verify/device/simulated/call.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "verify/device/simulated/memory.h"

namespace lenscpp::simulated {
namespace {

std::optional<DType> dtype_of(c10::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::f32;
    case at::kDouble:
      return DType::f64;
    case at::kBFloat16:
      return DType::bf16;
    case at::kHalf:
      return DType::f16;
    case at::kLong:
    case at::kInt:
    case at::kBool:
    case at::kByte:
      return DType::i64;
    default:
      return {};
  }
}

// Values in the order of the shape, whatever lies behind them afterwards.
Array array_of(const at::Tensor& host) {
  at::Tensor copy = at::empty(host.sizes(), host.options().memory_format(c10::nullopt));
  copy.copy_(host);
  if (*dtype_of(host.scalar_type()) == DType::i64) copy = copy.to(at::kLong);
  auto owner = std::make_shared<at::Tensor>(copy);
  return Array::wrap(owner->const_data_ptr(), Shape(host.sizes().begin(), host.sizes().end()),
                     *dtype_of(host.scalar_type()), owner);
}

at::Tensor tensor_of(const Array& array, c10::ScalarType type) {
  at::Tensor tensor = at::empty(
      array.shape(), at::dtype(array.dtype() == DType::i64 ? at::kLong : type).device(at::kCPU));
  if (array.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), array.bytes(), array.nbytes());
  return tensor.to(type);
}

Operand operand_of(const std::string& name, const at::Tensor& t) {
  return {.name = name,
          .shape = Shape(t.sizes().begin(), t.sizes().end()),
          .strides = Shape(t.strides().begin(), t.strides().end()),
          .offset = t.storage_offset(),
          .dtype = dtype_of(t.scalar_type()).value_or(DType::f32),
          .boolean = t.scalar_type() == at::kBool,
          .on_device = t.device().is_privateuseone()};
}

bool same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.has_storage() && b.has_storage() && a.storage().data() == b.storage().data();
}

}  // namespace

at::Tensor host_alias(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.device().is_privateuseone()) return tensor;
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), tensor.storage().nbytes(),
      c10::DataPtr(tensor.storage().mutable_data(), c10::Device(at::kCPU)), nullptr, false);
  at::Tensor alias = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(std::move(storage)), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                     tensor.storage_offset());
  if (tensor.is_conj()) alias._set_conj(true);
  if (tensor.is_neg()) alias._set_neg(true);
  return alias;
}

std::string leaf_name(const std::string& schema_name) {
  std::string name = schema_name.substr(schema_name.find("::") + 2);
  if (name.ends_with('_') && !name.ends_with("__")) name.pop_back();
  return name;
}

Call::Call(std::string op, std::vector<Argument> arguments)
    : op_(std::move(op)), arguments_(std::move(arguments)) {
  auto add_input = [&](const Argument& argument, const at::Tensor& tensor, Place place) {
    known_ = known_ && dtype_of(tensor.scalar_type());
    if (!argument.read) return;
    inputs_.push_back(operand_of(argument.name, tensor));
    places_.push_back(place);
  };
  for (std::size_t a = 0; a < arguments_.size(); ++a) {
    const c10::IValue& value = arguments_[a].value;
    if (value.isTensor() && value.toTensor().defined()) {
      host_.emplace_back(host_alias(value.toTensor()));
      add_input(arguments_[a], value.toTensor(), {a, -1});
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> members;
      for (const at::Tensor& t : value.toTensorVector()) {
        add_input(arguments_[a], t, {a, static_cast<std::int64_t>(members.size())});
        members.push_back(host_alias(t));
      }
      host_.emplace_back(members);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> members;
      for (const auto& t : value.toOptionalTensorList().vec())
        members.push_back(t ? std::optional(host_alias(*t)) : std::nullopt);
      host_.emplace_back(members);
    } else if (value.isDevice()) {
      host_.emplace_back(c10::Device(at::kCPU));
    } else if (value.isGenerator()) {
      host_.emplace_back();
    } else {
      host_.push_back(value);
    }
  }
  set_outputs(written());
}

std::vector<c10::IValue> Call::clones() const {
  std::vector<c10::IValue> values = host_;
  for (std::size_t a = 0; a < arguments_.size(); ++a)
    if (arguments_[a].written) values[a] = values[a].toTensor().clone();
  return values;
}

std::vector<at::Tensor> Call::written() const {
  std::vector<at::Tensor> tensors;
  for (const Argument& argument : arguments_)
    if (argument.written) tensors.push_back(argument.value.toTensor());
  return tensors;
}

void Call::keep_before() {
  for (const at::Tensor& t : written()) before_.push_back(array_of(host_alias(t)));
}

void Call::set_outputs(std::vector<at::Tensor> outputs) {
  output_tensors_ = std::move(outputs);
  outputs_.clear();
  for (const at::Tensor& t : output_tensors_) {
    known_ = known_ && dtype_of(t.scalar_type());
    outputs_.push_back(operand_of("out", t));
    for (const Argument& argument : arguments_) {
      if (!argument.value.isTensor() || !argument.value.toTensor().defined()) continue;
      bool same = same_memory(t, argument.value.toTensor());
      outputs_.back().given |= same && argument.written;
      outputs_.back().in_place |= same && argument.read;
    }
  }
}

std::int64_t Call::differing(const std::vector<at::Tensor>& clean) const {
  std::int64_t count = 0;
  for (std::size_t i = 0; i < output_tensors_.size() && i < clean.size(); ++i) {
    Array a = array_of(host_alias(output_tensors_[i])), b = array_of(clean[i]);
    std::size_t width = size_of(a.dtype());
    for (std::size_t at = 0; at < a.nbytes(); at += width)
      count += std::memcmp(a.bytes() + at, b.bytes() + at, width) != 0;
  }
  return count;
}

at::Tensor Call::host_tensor(const Place& place) const {
  const c10::IValue& value = host_[place.argument];
  return place.member < 0 ? value.toTensor()
                          : value.toTensorVector()[static_cast<std::size_t>(place.member)];
}

Array Call::input(std::size_t i) const { return array_of(host_tensor(places_.at(i))); }

Array Call::memory(std::size_t i) const {
  at::Tensor t = host_tensor(places_.at(i));
  std::int64_t n = static_cast<std::int64_t>(t.storage().nbytes() / t.itemsize());
  return array_of(t.as_strided({n}, {1}, 0));
}

void Call::replace(std::size_t i, const Array& values) {
  const Place& place = places_.at(i);
  at::Tensor now = host_tensor(place), wanted = tensor_of(values, now.scalar_type());
  if (arguments_[place.argument].written) {  // in place: what is read is what is written
    now.copy_(wanted);
  } else if (place.member < 0) {
    host_[place.argument] = wanted;
  } else {
    auto members = host_[place.argument].toTensorVector();
    members[static_cast<std::size_t>(place.member)] = wanted;
    host_[place.argument] = members;
  }
}

std::optional<double> Call::scalar(std::string_view name) const {
  for (std::size_t a = 0; a < arguments_.size(); ++a)
    if (arguments_[a].name == name && host_[a].isScalar()) return host_[a].toScalar().to<double>();
  return {};
}

void Call::set_scalar(std::string_view name, double value) {
  for (std::size_t a = 0; a < arguments_.size(); ++a)
    if (arguments_[a].name == name && host_[a].isScalar()) host_[a] = c10::IValue(value);
}

std::string Call::word(std::string_view name) const {
  for (std::size_t a = 0; a < arguments_.size(); ++a)
    if (arguments_[a].name == name && host_[a].isString()) return host_[a].toStringRef();
  return "";
}

Array Call::output(std::size_t i) const { return array_of(host_alias(output_tensors_.at(i))); }

void Call::set_output(std::size_t i, const Array& values) {
  at::Tensor alias = host_alias(output_tensors_.at(i));
  alias.copy_(tensor_of(values, alias.scalar_type()));
}

const Array* Call::before(std::size_t i) const {
  return i < before_.size() ? &before_[i] : nullptr;
}

std::vector<Call::Target> Call::targets() const {
  std::vector<Target> targets;
  for (const Memory::Block& block : memory_of_device().blocks()) {
    bool own = std::ranges::any_of(output_tensors_, [&](const at::Tensor& t) {
      return t.has_storage() && t.storage().data() == block.data;
    });
    if (!own) targets.push_back({static_cast<unsigned char*>(block.data), block.bytes});
  }
  return targets;
}

std::int64_t Call::neighbours() const { return static_cast<std::int64_t>(targets().size()); }

std::int64_t Call::clobber(std::int64_t neighbour, std::int64_t elements, double value) {
  Target target = targets().at(static_cast<std::size_t>(neighbour));
  DType dtype = outputs_.empty() ? DType::f32 : outputs_[0].dtype;
  MutableArray one({1}, dtype);
  one.set(0, value);
  std::int64_t changed = 0;
  for (std::size_t i = 0;
       i < std::min(static_cast<std::size_t>(elements) * size_of(dtype), target.bytes); ++i) {
    auto byte = static_cast<unsigned char>(one.bytes()[i % size_of(dtype)]);
    changed += target.data[i] != byte;
    target.data[i] = byte;
  }
  return changed;
}

}  // namespace lenscpp::simulated
