// Pinning and recording torch's ambient state.
#include "hooks/transformer/ambient.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <memory>

namespace lenscpp {
namespace {

// Reading some flags throws when the old and the new way of setting them were mixed.
template <class Read>
std::string read(const Read& flag) {
  try {
    return flag();
  } catch (const std::exception&) {
    return "unreadable";
  }
}
std::string on_off(bool value) { return value ? "on" : "off"; }

struct Precision {
  at::Float32Backend backend;
  at::Float32Op op;
};
constexpr Precision kPrecisions[] = {{at::Float32Backend::GENERIC, at::Float32Op::ALL},
                                     {at::Float32Backend::MKLDNN, at::Float32Op::ALL},
                                     {at::Float32Backend::MKLDNN, at::Float32Op::MATMUL},
                                     {at::Float32Backend::CUDA, at::Float32Op::ALL},
                                     {at::Float32Backend::CUDA, at::Float32Op::MATMUL}};

}  // namespace

std::map<std::string, std::string> read_ambient(c10::Device device) {
  at::Context& context = at::globalContext();
  std::map<std::string, std::string> flags;
  flags["autocast"] = on_off(at::autocast::is_autocast_enabled(device.type()));
  flags["grad"] = on_off(c10::GradMode::is_enabled());
  flags["default_dtype"] = std::string(c10::get_default_dtype().name());
  flags["deterministic_algorithms"] = on_off(context.deterministicAlgorithms());
  flags["cpu_float32_matmul"] = read([&] {
    return at::precision2str(
        context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL));
  });
  flags["cpu_fp16_reduction"] = read([&] { return on_off(context.allowFP16ReductionCPU()); });
  if (device.is_cuda()) {
    flags["cublas_tf32"] = read([&] { return on_off(context.allowTF32CuBLAS()); });
    flags["cublas_fp16_reduction"] =
        read([&] { return std::to_string(static_cast<int>(context.allowFP16ReductionCuBLAS())); });
    flags["cublas_bf16_reduction"] =
        read([&] { return std::to_string(static_cast<int>(context.allowBF16ReductionCuBLAS())); });
  }
  return flags;
}

AmbientGuard::AmbientGuard(c10::Device device) {
  auto hold = [this](auto guard) { restore_.push_back([guard]() mutable { guard.reset(); }); };
  // Python's dispatch modes and functorch's transforms see, and may change, every operator.
  hold(std::make_shared<c10::impl::ExcludeDispatchKeyGuard>(c10::DispatchKeySet(
      {c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
       c10::DispatchKey::PythonDispatcher, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
       c10::DispatchKey::FuncTorchDynamicLayerBackMode})));
  hold(std::make_shared<c10::InferenceMode>(true));
  for (c10::DeviceType type : {c10::DeviceType::CPU, device.type()}) {
    bool before = at::autocast::is_autocast_enabled(type);
    at::autocast::set_autocast_enabled(type, false);
    restore_.push_back([type, before] { at::autocast::set_autocast_enabled(type, before); });
  }
  at::Context& context = at::globalContext();
  for (const Precision& p : kPrecisions) {
    at::Float32Precision before = context.float32Precision(p.backend, p.op);
    if (before != at::Float32Precision::TF32 && before != at::Float32Precision::BF16) continue;
    context.setFloat32Precision(p.backend, p.op, at::Float32Precision::IEEE);
    restore_.push_back(
        [&context, p, before] { context.setFloat32Precision(p.backend, p.op, before); });
  }
  if (context.allowFP16ReductionCPU()) {
    context.setAllowFP16ReductionCPU(false);
    restore_.push_back([&context] { context.setAllowFP16ReductionCPU(true); });
  }
  flags_ = read_ambient(device);
}

AmbientGuard::~AmbientGuard() {
  while (!restore_.empty()) {
    restore_.back()();
    restore_.pop_back();
  }
}

}  // namespace lenscpp
