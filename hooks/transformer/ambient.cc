// Pinning and recording torch's ambient state.
#include "hooks/transformer/ambient.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include <array>
#include <cstdlib>
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

// What changes numbers from outside of torch's flags.
constexpr const char* kVariables[] = {"NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
                                      "PYTORCH_MPS_FAST_MATH", "PYTORCH_MPS_PREFER_METAL",
                                      "PYTORCH_ENABLE_MPS_FALLBACK"};

std::string macos_version() {
#ifdef __APPLE__
  std::array<char, 64> text{};
  std::size_t size = text.size() - 1;
  if (sysctlbyname("kern.osproductversion", text.data(), &size, nullptr, 0) == 0)
    return text.data();
#endif
  return "";
}

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
  flags["deterministic_warn_only"] = on_off(context.deterministicAlgorithmsWarnOnly());
  flags["deterministic_fill"] = on_off(context.deterministicFillUninitializedMemory());
  for (const char* name : kVariables)
    if (const char* value = std::getenv(name)) flags[name] = value;
  if (std::string version = macos_version(); !version.empty()) flags["macos"] = version;
  if (device.is_cuda()) {
    flags["deterministic_cudnn"] = on_off(context.deterministicCuDNN());
    flags["cuda_float32_matmul"] = read([&] {
      return at::precision2str(
          context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL));
    });
    flags["cublas_tf32"] = read([&] { return on_off(context.allowTF32CuBLAS()); });
    flags["cublas_fp16_reduction"] =
        read([&] { return std::to_string(static_cast<int>(context.allowFP16ReductionCuBLAS())); });
    flags["cublas_bf16_reduction"] =
        read([&] { return std::to_string(static_cast<int>(context.allowBF16ReductionCuBLAS())); });
    flags["cublas_fp16_accumulation"] =
        read([&] { return on_off(context.allowFP16AccumulationCuBLAS()); });
  }
  return flags;
}

namespace {

// Flags of the whole process: the first of several runs at a time pins them, the last one restores
// them.
class ProcessPins {
 public:
  explicit ProcessPins(MatmulPrecision precision) : precision_(precision) {
    std::lock_guard lock(mutex());
    if (users()++ == 0) {
      products_before() = at::globalContext().float32Precision(kCuda, kMatmul);
      pin();
    }
    if (precision_ == MatmulPrecision::tf32) tf32_users() += 1;
    settle_tf32();
  }
  ~ProcessPins() {
    std::lock_guard lock(mutex());
    if (precision_ == MatmulPrecision::tf32) tf32_users() -= 1;
    if (--users() > 0) {
      settle_tf32();
      return;
    }
    for (auto& restore : restores()) restore();
    restores().clear();
  }
  ProcessPins(const ProcessPins&) = delete;
  ProcessPins& operator=(const ProcessPins&) = delete;

 private:
  static constexpr auto kCuda = at::Float32Backend::CUDA;
  static constexpr auto kMatmul = at::Float32Op::MATMUL;

  // TF32 is a permission: one run without it is enough to turn it off for all that run meanwhile.
  static void settle_tf32() {
    if (!declared() && tf32_users() == 0) return;
    at::Context& context = at::globalContext();
    if (!declared()) {
      // Last, when all that it may inherit from is as it was: else it could not be told from a
      // precision of its own.
      restores().push_back([&context] {
        context.setFloat32Precision(kCuda, kMatmul, at::Float32Precision::NONE);
        if (context.float32Precision(kCuda, kMatmul) != products_before())
          context.setFloat32Precision(kCuda, kMatmul, products_before());
        declared() = false;
      });
      declared() = true;
    }
    context.setFloat32Precision(
        kCuda, kMatmul,
        tf32_users() == users() ? at::Float32Precision::TF32 : at::Float32Precision::IEEE);
  }
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
    if (context.allowFP16AccumulationCuBLAS()) {
      context.setAllowFP16AccumulationCuBLAS(false);
      restores().push_back([&context] { context.setAllowFP16AccumulationCuBLAS(true); });
    }
  }
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static int& users() {
    static int count = 0;
    return count;
  }
  static int& tf32_users() {
    static int count = 0;
    return count;
  }
  // What products were set to, or inherited, before the pins.
  static at::Float32Precision& products_before() {
    static auto precision = at::Float32Precision::NONE;
    return precision;
  }
  // Whether TF32 was touched since the pins were set.
  static bool& declared() {
    static bool touched = false;
    return touched;
  }
  static std::vector<std::function<void()>>& restores() {
    static std::vector<std::function<void()>> list;
    return list;
  }

  MatmulPrecision precision_;
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
  Pins(c10::Device device, MatmulPrecision precision)
      : cpu(c10::DeviceType::CPU), device(device.type()), process(precision) {}

  c10::impl::ExcludeDispatchKeyGuard modes{kModes};
  c10::InferenceMode inference{true};
  NoAutocast cpu, device;
  ProcessPins process;
};

AmbientGuard::AmbientGuard(c10::Device device, MatmulPrecision precision)
    : pins_(std::make_unique<Pins>(device, precision)), flags_(read_ambient(device)) {}

AmbientGuard::~AmbientGuard() = default;

}  // namespace lenscpp
