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

}  // namespace lenscpp
