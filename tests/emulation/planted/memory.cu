#include "cuda/launch.cuh"
#include "cuda/shared.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

// Leaves shared memory written, so that the next block shows whether it was poisoned anew.
__global__ void unwritten_kernel(float* as_float, uint32_t* bits, bool dynamic) {
  __shared__ float fixed[32];
  auto* values = dynamic ? reinterpret_cast<float*>(dynamic_shared()) : fixed;
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  as_float[at] = values[threadIdx.x];
  bits[at] = reinterpret_cast<uint32_t*>(values)[threadIdx.x];
  values[threadIdx.x] = 1;
}

__global__ void write_kernel(int offset) {
  if (threadIdx.x == 0) dynamic_shared()[offset] = 0;
}

__global__ void empty_kernel() {}
__global__ void other_empty_kernel() {}

}  // namespace

cudaError_t unwritten(float* as_float, uint32_t* bits, bool dynamic) {
  return launch(unwritten_kernel, {3, 32, 128, nullptr}, as_float, bits, dynamic);
}

cudaError_t write_at(int offset, int shared_bytes) {
  return launch(write_kernel, {2, 32, size_t(shared_bytes), nullptr}, offset);
}

cudaError_t empty(unsigned blocks, unsigned threads, size_t shared_bytes, size_t allowed) {
  if (allowed == 0) return launch(empty_kernel, {blocks, threads, shared_bytes, nullptr});
  const cudaError_t error = cudaFuncSetAttribute(
      other_empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(allowed));
  if (error != cudaSuccess) return error;
  return launch(other_empty_kernel, {blocks, threads, shared_bytes, nullptr});
}

}  // namespace planted
