// The threads that checks share with LibTorch.
#pragma once

#include <cstdint>
#include <functional>

namespace lenscpp {

/// A ParallelFor over LibTorch's own pool.
void torch_parallel_for(std::int64_t n,
                        const std::function<void(std::int64_t, std::int64_t)>& body);

}  // namespace lenscpp
