#include "cuda/launch.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

// Nothing but switches of threads: how fast they are.
__global__ void busy_kernel(const float* x, float* out, int barriers, int shuffles) {
  float sum = x[threadIdx.x];
  for (int i = 0; i < barriers; ++i) {
    for (int j = 0; j < shuffles; ++j) sum += __shfl_xor_sync(0xffffffff, sum, j % 32);
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace

cudaError_t busy(const float* x, float* out, int blocks, int barriers, int shuffles) {
  return launch(busy_kernel, {unsigned(blocks), 256, 0, nullptr}, x, out, barriers, shuffles);
}

}  // namespace planted
