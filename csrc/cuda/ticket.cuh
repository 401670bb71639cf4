// The means of sums over blocks in a fixed order: each block leaves its own, and the one that comes
// last adds them up, in its own kernel: CosineKernel::finish (cosine.cu), sum_over_images
// (info_nce_epilogue.cuh), and the gradient of the temperature (info_nce_backward.cu).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace logo {
namespace cuda {

// A workspace for it: a counter, and some fp64 sums from each block.
constexpr int64_t kFoundOffset = 128;  // apart from the counter, which all blocks write
constexpr int kFound = 4;              // numbers apart: each block's in a sector of its own
constexpr int64_t kFoundBytes = kFound * 8;

struct BlockSums {
  unsigned* finished;  // blocks so far; zero before the launch, and after it
  double* found;       // [blocks, kFound]

  BlockSums() : finished(nullptr), found(nullptr) {}
  explicit BlockSums(void* workspace)
      : finished(static_cast<unsigned*>(workspace)),
        found(reinterpret_cast<double*>(static_cast<char*>(workspace) + kFoundOffset)) {}

  __device__ __forceinline__ double* of(int64_t block) const { return found + kFound * block; }
};

// By all threads, after the block's last write. True in every thread of the block that comes last:
// it sees what all blocks have written. flag: in shared memory.
__device__ __forceinline__ bool comes_last(unsigned* finished, unsigned* flag) {
  __syncthreads();  // the fence below then covers the writes of the whole block
  if (threadIdx.x == 0) {
    __threadfence();
    *flag = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (*flag != 0) *finished = 0;
    __threadfence();
  }
  __syncthreads();
  return *flag != 0;
}

}  // namespace cuda
}  // namespace logo
