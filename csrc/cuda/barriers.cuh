// Barriers of some of a block's warps: ids 1 to 15; 0 belongs to __syncthreads().
#pragma once

#include <cuda_runtime.h>

namespace logo::cuda {

// Until `threads` threads, whole warps, have come here or to named_barrier_arrive.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
#if defined(LOGO_EMULATED)
  emulation::named_barrier_sync(id, threads);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

// Counts the warp at the barrier without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
#if defined(LOGO_EMULATED)
  emulation::named_barrier_arrive(id, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

}  // namespace logo::cuda
