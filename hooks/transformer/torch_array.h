// Between host arrays and tensors, without copies where the device is the host.
#pragma once

#include <ATen/core/Tensor.h>

#include "hooks/array.h"

namespace lenscpp {

c10::ScalarType to_scalar_type(DType dtype);
/// Throws std::invalid_argument for types that no Array has.
DType to_dtype(c10::ScalarType type);

/// A host snapshot. On the CPU a contiguous tensor is shared, not copied: the pass never writes to
/// a tensor that it has handed out. From a device the values are copied, and have arrived on
/// return.
Array snapshot(const at::Tensor& tensor);
/// A CPU tensor over the array's own memory, for reading only.
at::Tensor alias(const Array& array);
/// A copy of the array on `device`.
at::Tensor upload(const Array& array, c10::Device device);
/// A CPU tensor of the caller's own.
at::Tensor own_copy(const Array& array);

}  // namespace lenscpp
