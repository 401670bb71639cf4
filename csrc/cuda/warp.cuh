// Sums over the lanes of a warp, in a fixed order.
#pragma once

#include <cuda_runtime.h>

namespace logo {
namespace cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, apart));
  }
  return value;
}

// One step of warp_sums_of_16, which halves the values that a lane is left with.
template <int HALF>
__device__ __forceinline__ void give_half(float (&values)[16]) {
  const bool upper = threadIdx.x & (2 * HALF);
#pragma unroll
  for (int k = 0; k < HALF; ++k) {
    const float given = upper ? values[k] : values[k + HALF];
    const float kept = upper ? values[k + HALF] : values[k];
    values[k] = kept + __shfl_xor_sync(kAllLanes, given, 2 * HALF);
  }
}

// Sums of 16 values at once in 16 shuffles, where one after another takes 80: at each step a lane
// gives half of its values away and receives the other half of its partner's. Lane l is left with
// the sum of value l / 2.
__device__ __forceinline__ float warp_sums_of_16(float (&values)[16]) {
  give_half<8>(values);
  give_half<4>(values);
  give_half<2>(values);
  give_half<1>(values);
  return values[0] + __shfl_xor_sync(kAllLanes, values[0], 1);
}

}  // namespace cuda
}  // namespace logo
