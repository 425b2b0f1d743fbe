// The device pass: a transformer in LibTorch over the rows of a request, every named tensor through
// a tap. Only computes; what it computed is checked elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "hooks/checkpoint/weights.h"
#include "hooks/rows.h"
#include "hooks/transformer/linear_weight.h"
#include "hooks/transformer/tap.h"

namespace lenscpp {

/// Weights as the device holds them.
struct DeviceLayer {
  at::Tensor ln1_w, ln1_b, b_QKV, q_norm_w, k_norm_w, b_O, ln1_post_w, ln2_w, ln2_b, b_router,
      b_gate, b_in, b_out, ln2_post_w;
  LinearWeight W_QKV, W_O, W_router, W_gate, W_in, W_out;
};

/// What a run of the device pass leaves beside the tensors that its taps saw.
struct PassResult {
  at::Tensor output;  // logits [batch, pos, d_vocab] or [batch, label], or the residual
                      // [batch, pos, d_model] where there are none
  std::map<std::string, std::string> ambient;  // flags as pinned
  std::vector<HookCall> hooks = {};            // calls of the request's callbacks, in order
  std::vector<std::string> fallbacks = {};  // operators that ran on the CPU instead of the device
};

/// A model on a device. Runs are const: nothing is left on the model after a call.
class Transformer {
 public:
  /// Weights are used where they lie on the CPU, and copied to any other device.
  /// `precision` is what its runs allow CUDA to do to operands of float32 products.
  Transformer(std::shared_ptr<const Weights> weights, c10::Device device,
              MatmulPrecision precision = MatmulPrecision::ieee);

  /// Runs `request`. Every tensor is handed to `sink` (unless null) in execution order.
  /// Throws what Request::validate and the callbacks throw.
  PassResult run(const Request& request, Sink* sink, const Interference& interference = {}) const;

  const Weights& weights() const { return *weights_; }
  const std::shared_ptr<const Weights>& shared_weights() const { return weights_; }
  c10::Device device() const { return device_; }

 private:
  friend class Pass;
  std::shared_ptr<const Weights> weights_;
  c10::Device device_;
  MatmulPrecision precision_;
  at::Tensor W_E_, W_pos_, W_type_, embed_ln_w_, embed_ln_b_, b_head_, b_class_, ln_final_w_,
      ln_final_b_, b_U_;
  LinearWeight W_head_, W_class_, W_U_;
  std::vector<DeviceLayer> layers_;
};

}  // namespace lenscpp
