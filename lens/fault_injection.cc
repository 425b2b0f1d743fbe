// Device tensor -> host array -> fault -> the same device.
#include "lens/fault_injection.h"

#include "hooks/transformer/torch_array.h"

namespace lenscpp {

Interference interference_of(std::shared_ptr<FaultInjector> injector) {
  return [injector = std::move(injector)](const TensorId& id, const at::Tensor& x) {
    if (!injector->wants(id)) return x;
    Array before = snapshot(x);
    Array after = (*injector)(id, before);
    return after.bytes() == before.bytes() ? x : upload(after, x.device());
  };
}

InjectedFaults::InjectedFaults(const std::vector<FaultSpec>& specs, const Config& config) {
  std::vector<FaultSpec> tap, device;
  for (const FaultSpec& spec : specs) (is_device_fault(spec.name) ? device : tap).push_back(spec);
  if (!tap.empty()) injector_ = std::make_shared<FaultInjector>(std::move(tap), config);
  if (!device.empty()) device_ = std::make_shared<DeviceFaults>(std::move(device), config);
}

std::vector<InjectedFaults::Firing> InjectedFaults::log(const Request& request) const {
  std::vector<Firing> log;
  if (injector_)
    for (const auto& f : injector_->log())
      log.push_back({f.fault, request.name_of(f.id), "", f.changed});
  if (device_)
    for (const auto& f : device_->log())
      log.push_back({f.fault, f.id ? request.name_of(*f.id) : "", f.op, f.changed});
  return log;
}

}  // namespace lenscpp
