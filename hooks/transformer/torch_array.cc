// Arrays and tensors.
#include "hooks/transformer/torch_array.h"

#include <ATen/ops/from_blob.h>

#include <stdexcept>
#include <string>

namespace lenscpp {

c10::ScalarType to_scalar_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return at::kFloat;
    case DType::f64:
      return at::kDouble;
    case DType::bf16:
      return at::kBFloat16;
    case DType::f16:
      return at::kHalf;
    case DType::i64:
      return at::kLong;
  }
  throw std::logic_error("[torch] not a DType");
}

DType to_dtype(c10::ScalarType type) {
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
      return DType::i64;
    default:
      throw std::invalid_argument(std::string("[torch] a tensor of ") + c10::toString(type) +
                                  "; allowed: float32, float64, bfloat16, float16, int64");
  }
}

Array snapshot(const at::Tensor& tensor) {
  // The blocking copy waits for the device, so the values are there when the array is.
  auto host = std::make_shared<at::Tensor>(
      tensor.device().is_cpu() ? tensor.contiguous()
                               : tensor.to(at::kCPU, /*non_blocking=*/false).contiguous());
  Shape shape(host->sizes().begin(), host->sizes().end());
  const void* data = host->const_data_ptr();
  DType dtype = to_dtype(host->scalar_type());
  return Array::wrap(data, std::move(shape), dtype, std::move(host));
}

at::Tensor alias(const Array& array) {
  auto owner = array.owner();
  return at::from_blob(
      const_cast<std::byte*>(array.bytes()), array.shape(), [owner](void*) {},
      at::TensorOptions().dtype(to_scalar_type(array.dtype())).device(at::kCPU));
}

at::Tensor upload(const Array& array, c10::Device device) {
  at::Tensor host = alias(array);
  return device.is_cpu() ? host.clone() : host.to(device, /*non_blocking=*/false);
}

at::Tensor own_copy(const Array& array) { return alias(array).clone(); }

}  // namespace lenscpp
