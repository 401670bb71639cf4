// Which block of a launch comes last: it adds up, in a fixed order, what all of them have written.
#pragma once

#include <cuda_runtime.h>

namespace logo {
namespace cuda {

// By all threads, after the block's last write. True in every thread of the block that comes last:
// it sees what all blocks have written. `finished` is zero before the launch, and after it.
static __device__ __forceinline__ bool comes_last(unsigned* finished) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (last) *finished = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

}  // namespace cuda
}  // namespace logo
