// Division of numbers in 64 bits by one that the host knows, without the division.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace logo {
namespace cuda {

// Exact for 0 ≤ n < 2^64 / by.
struct Divider {
  int64_t by = 1;
  uint64_t reciprocal = 0;  // 2^64 / by, rounded up; 0 stands for 2^64

  Divider() = default;
  explicit Divider(int64_t divisor) : by(divisor) {
    if (by > 1) reciprocal = ~uint64_t(0) / uint64_t(by) + 1;
  }

  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    return reciprocal == 0 ? n : int64_t(__umul64hi(uint64_t(n), reciprocal));
  }
};

}  // namespace cuda
}  // namespace logo
