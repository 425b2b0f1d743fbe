// The threads that checks share with LibTorch.
#include "lens/torch_parallel.h"

#include <ATen/Parallel.h>

namespace lenscpp {

void torch_parallel_for(std::int64_t n,
                        const std::function<void(std::int64_t, std::int64_t)>& body) {
  at::parallel_for(0, n, 1, body);
}

}  // namespace lenscpp
