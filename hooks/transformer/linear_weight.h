// The weight of a product x W + b on a device, in the order in which the processor reads it
// fastest.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <mutex>

namespace lenscpp {

/// W [in, out] as it lies and, where oneDNN has a faster order for it (float32 on x86, large
/// enough), a second copy in that order, made at the first product. The same weight always takes
/// the same path, so that equal runs are equal to the bit.
class LinearWeight {
 public:
  LinearWeight() = default;
  /// `weight` is [in, out], or [out, in] when its outputs are rows. No operator runs here: what
  /// surrounds a load (autocast, dispatch modes) cannot change it.
  explicit LinearWeight(at::Tensor weight, bool outputs_are_rows = false);

  /// x W + b for x [rows, in]: [rows, out]. Safe to call from several threads.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& bias) const;
  const at::Tensor& plain() const { return plain_; }  // as given
  std::int64_t in() const { return plain_.size(outputs_are_rows_ ? 1 : 0); }

 private:
  struct Packed {
    std::once_flag once;
    at::Tensor weight;
  };
  at::Tensor plain_;
  bool outputs_are_rows_ = false;
  std::shared_ptr<Packed> packed_;  // null: products read `plain_`
};

}  // namespace lenscpp
