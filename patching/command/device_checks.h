// Small questions to a device, each compared with what the host makes of the same: operators,
// dtypes, functions, copies, gradients.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "lens/hooked_transformer.h"

namespace lenscpp::command {

/// Says on standard error what is being done: the last such line is what a device hung or died in.
void step(const std::string& what);
/// Of a message: its first line, of a long one the first sentences.
std::string first_line(std::string text);
std::string short_number(double value);  // "3.1e-05"
/// JSON has no infinities and no NaN: those as text.
nlohmann::json number(double value);

/// One operator that a forward pass calls: "native", "fallback" (ran on the CPU instead) or
/// "missing" (threw, `error` says what).
struct OperatorCheck {
  std::string name, status, error;
};
/// Records every operator of a forward pass on the CPU with its operands, and calls each on the
/// device by itself and waits for it, so that a missing one does not hide the next. What a run
/// makes on the host whatever its device is not asked. `model` is on the CPU.
std::vector<OperatorCheck> check_operators(const HookedTransformer& model, const Tokens& tokens,
                                           c10::Device device);

/// One dtype, there and back, and converted there from and to float32. `error` is empty where all
/// bits are as on the host; `lies`: it was accepted, but they are not.
struct DtypeCheck {
  std::string name, error;
  bool lies = false;
};
std::vector<DtypeCheck> check_dtypes(c10::Device device);

/// The worst error of an elementwise function in float32 over a grid, against float64: in units of
/// the last place of the result; of the argument for GELU, whose tail cancels.
struct AccuracyCheck {
  std::string name;
  double worst_ulp, at, allowed;
};
std::vector<AccuracyCheck> check_accuracy(c10::Device device);

/// One way of copying; `error` is empty where every bit arrived.
struct CopyCheck {
  std::string name, error;
};
std::vector<CopyCheck> check_copies(c10::Device device);

/// Gradients of a small MLP in float32 on the device: (of what, error relative to the norm of the
/// same gradient in float64 on the host).
std::vector<std::pair<std::string, double>> check_backward(c10::Device device);

}  // namespace lenscpp::command
