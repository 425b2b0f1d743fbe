// The device as PyTorch's runtime sees it: guard, hooks, name; and the door to the shared object.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "hooks/build_info.h"
#include "verify/device/simulated/memory.h"
#include "verify/device/simulated/state.h"

namespace lenscpp::simulated {
namespace {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;

// Operators run in the thread that calls them: another thread's run has no part in these.
thread_local std::shared_ptr<DeviceFaults> armed;

// One device, one stream, and nothing that could be pending.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device) const override { return {kType, 0}; }
  c10::Device getDevice() const override { return {kType, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}

 private:
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, c10::Device(kType, 0)); }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  at::Device getDeviceFromPtr(void*) const override { return {kType, 0}; }
  // Random numbers are the CPU's, from a generator of the device's own.
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static auto* generator = new at::Generator(getNewGenerator(0));
    return *generator;
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::make_generator<at::CPUGeneratorImpl>();
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, std::size_t bytes) const override {
    resize_storage(storage, bytes);
  }
};

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

State& state() {
  static auto* instance = new State;
  return *instance;
}

void State::set_limits(const SimulatedLimits& limits) {
  auto standing = limits.faults.empty() ? nullptr : std::make_shared<DeviceFaults>(limits.faults);
  std::lock_guard lock(mutex_);
  limits_ = std::make_shared<SimulatedLimits>(limits);
  standing_ = std::move(standing);
  memory_of_device().set_limit(limits.max_buffer_bytes);
}

std::shared_ptr<const SimulatedLimits> State::limits() const {
  std::lock_guard lock(mutex_);
  return limits_;
}

void State::arm(std::shared_ptr<DeviceFaults> faults) {
  armed = std::move(faults);
  memory_of_device().mark();
}

std::shared_ptr<DeviceFaults> State::faults() const {
  if (armed) return armed;
  std::lock_guard lock(mutex_);
  return standing_;
}

std::vector<std::string> State::violations() const { return memory_of_device().violations(); }

void State::count(const std::string& op) {
  std::lock_guard lock(mutex_);
  calls_[op] += 1;
}

std::vector<std::pair<std::string, std::int64_t>> State::calls() const {
  std::lock_guard lock(mutex_);
  return {calls_.begin(), calls_.end()};
}

}  // namespace lenscpp::simulated

extern "C" {

[[gnu::visibility("default")]] const char* lenscpp_simulated_build() {
  static const std::string build =
      std::string(lenscpp::lenscpp_version()) + " " + lenscpp::build_commit();
  return build.c_str();
}

[[gnu::visibility("default")]] lenscpp::SimulatedDevice* lenscpp_simulated_device() {
  static auto* hooks = new lenscpp::simulated::Hooks;
  static bool once = [] {
    at::RegisterPrivateUse1HooksInterface(hooks);
    c10::register_privateuse1_backend("simulated");
    return true;
  }();
  static_cast<void>(once);
  return &lenscpp::simulated::state();
}
}
