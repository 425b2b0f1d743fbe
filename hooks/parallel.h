// How work is spread over threads: injected, so that the reference, the checks and LibTorch share
// one pool and nothing here names a threading library.
#pragma once

#include <cstdint>
#include <functional>

namespace lenscpp {

/// Calls body(begin, end) on disjoint ranges that cover [0, n), possibly at the same time, and
/// returns when all are done. An exception thrown by a body is rethrown to the caller.
using ParallelFor = std::function<void(
    std::int64_t n, const std::function<void(std::int64_t, std::int64_t)>& body)>;

/// All of it on the calling thread.
inline void serial_for(std::int64_t n,
                       const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (n > 0) body(0, n);
}

}  // namespace lenscpp
