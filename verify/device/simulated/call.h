// One call of an operator as the faults see it: over tensors, host aliases of device memory and
// values on PyTorch's stack. Of the shared object alone.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <string>
#include <vector>

#include "verify/device/device_faults.h"

namespace lenscpp::simulated {

/// A CPU tensor over the memory of a device tensor, for as long as that lives; CPU tensors as they
/// are.
at::Tensor host_alias(const at::Tensor& tensor);
/// "masked_fill" of "aten::masked_fill_".
std::string leaf_name(const std::string& schema_name);

/// One argument of a call.
struct Argument {
  std::string name;
  c10::IValue value;  // as the caller gave it
  bool read = true, written = false;
};

class Call : public DeviceCall {
 public:
  Call(std::string op, std::vector<Argument> arguments);

  /// Whether every tensor is of a dtype that faults know.
  bool known_to_faults() const { return known_; }
  /// Arguments with host aliases for device tensors, as faults left them.
  const std::vector<c10::IValue>& host() const { return host_; }
  /// The same with clones of what is written, to run it without faults.
  std::vector<c10::IValue> clones() const;
  /// Keeps what stands where the call writes.
  void keep_before();
  /// Tensors that the call made, on the device or not.
  void set_outputs(std::vector<at::Tensor> outputs);
  /// Elements in which the outputs differ from `clean`, bit by bit.
  std::int64_t differing(const std::vector<at::Tensor>& clean) const;
  /// Those arguments that are written, in order.
  std::vector<at::Tensor> written() const;

  const std::string& op() const override { return op_; }
  const std::vector<Operand>& inputs() const override { return inputs_; }
  Array input(std::size_t i) const override;
  Array memory(std::size_t i) const override;
  void replace(std::size_t i, const Array& values) override;
  std::optional<double> scalar(std::string_view name) const override;
  void set_scalar(std::string_view name, double value) override;
  std::string word(std::string_view name) const override;
  const std::vector<Operand>& outputs() const override { return outputs_; }
  Array output(std::size_t i) const override;
  void set_output(std::size_t i, const Array& values) override;
  const Array* before(std::size_t i) const override;
  std::int64_t neighbours() const override;
  std::int64_t clobber(std::int64_t neighbour, std::int64_t elements, double value) override;

 private:
  struct Place {
    std::size_t argument;
    std::int64_t member;  // of a list; -1: no list
  };
  at::Tensor host_tensor(const Place& place) const;
  struct Target {
    unsigned char* data;
    std::size_t bytes;
  };
  std::vector<Target> targets() const;

  std::string op_;
  std::vector<Argument> arguments_;
  std::vector<c10::IValue> host_;
  std::vector<Operand> inputs_, outputs_;
  std::vector<Place> places_;
  std::vector<at::Tensor> output_tensors_;
  std::vector<Array> before_;
  bool known_ = true;
};

}  // namespace lenscpp::simulated
