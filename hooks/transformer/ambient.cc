// Pinning and recording torch's ambient state.
#include "hooks/transformer/ambient.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <functional>
#include <mutex>
#include <vector>

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

namespace {

// Flags of the whole process: the first of several runs at a time pins them, the last one restores
// them.
class ProcessPins {
 public:
  ProcessPins() {
    std::lock_guard lock(mutex());
    if (users()++ == 0) pin();
  }
  ~ProcessPins() {
    std::lock_guard lock(mutex());
    if (--users() > 0) return;
    for (auto& restore : restores()) restore();
    restores().clear();
  }
  ProcessPins(const ProcessPins&) = delete;
  ProcessPins& operator=(const ProcessPins&) = delete;

 private:
  static void pin() {
    at::Context& context = at::globalContext();
    for (const Precision& p : kPrecisions) {
      at::Float32Precision before = context.float32Precision(p.backend, p.op);
      if (before != at::Float32Precision::TF32 && before != at::Float32Precision::BF16) continue;
      context.setFloat32Precision(p.backend, p.op, at::Float32Precision::IEEE);
      restores().push_back(
          [&context, p, before] { context.setFloat32Precision(p.backend, p.op, before); });
    }
    if (context.allowFP16ReductionCPU()) {
      context.setAllowFP16ReductionCPU(false);
      restores().push_back([&context] { context.setAllowFP16ReductionCPU(true); });
    }
    using Option = at::CuBLASReductionOption;
    Option fp16 = context.allowFP16ReductionCuBLAS(), bf16 = context.allowBF16ReductionCuBLAS();
    context.setAllowFP16ReductionCuBLAS(false, false);
    context.setAllowBF16ReductionCuBLAS(false, false);
    restores().push_back([&context, fp16, bf16] {
      auto reduced = [](Option o) { return o == Option::AllowReducedPrecisionWithSplitK; };
      auto split = [](Option o) { return o != Option::DisallowReducedPrecisionDisallowSplitK; };
      context.setAllowFP16ReductionCuBLAS(reduced(fp16), split(fp16));
      context.setAllowBF16ReductionCuBLAS(reduced(bf16), split(bf16));
    });
  }
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static int& users() {
    static int count = 0;
    return count;
  }
  static std::vector<std::function<void()>>& restores() {
    static std::vector<std::function<void()>> list;
    return list;
  }
};

// Autocast is a flag of the thread.
class NoAutocast {
 public:
  explicit NoAutocast(c10::DeviceType type)
      : type_(type), before_(at::autocast::is_autocast_enabled(type)) {
    at::autocast::set_autocast_enabled(type_, false);
  }
  ~NoAutocast() { at::autocast::set_autocast_enabled(type_, before_); }
  NoAutocast(const NoAutocast&) = delete;
  NoAutocast& operator=(const NoAutocast&) = delete;

 private:
  c10::DeviceType type_;
  bool before_;
};

// Python's dispatch modes and functorch's transforms see, and may change, every operator.
const c10::DispatchKeySet kModes({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot,
                                  c10::DispatchKey::PythonDispatcher,
                                  c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                  c10::DispatchKey::FuncTorchDynamicLayerBackMode});

}  // namespace

// Members are restored last to first, also when a later one throws.
struct AmbientGuard::Pins {
  explicit Pins(c10::Device device) : cpu(c10::DeviceType::CPU), device(device.type()) {}

  c10::impl::ExcludeDispatchKeyGuard modes{kModes};
  c10::InferenceMode inference{true};
  NoAutocast cpu, device;
  ProcessPins process;
};

AmbientGuard::AmbientGuard(c10::Device device)
    : pins_(std::make_unique<Pins>(device)), flags_(read_ambient(device)) {}

AmbientGuard::~AmbientGuard() = default;

}  // namespace lenscpp
