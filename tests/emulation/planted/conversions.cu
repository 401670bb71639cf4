#include "cuda/convert.cuh"
#include "cuda/launch.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

template <class Half>
__global__ void unpack_kernel(const uint32_t* pairs, float* values, int n) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    const float2 both = unpack<Half>(pairs[i]);
    values[2 * i] = both.x;
    values[2 * i + 1] = both.y;
  }
}

template <class Half>
__global__ void pack_kernel(const float* values, uint32_t* pairs, int n) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    pairs[i] = pack<Half>(values[2 * i], values[2 * i + 1]);
  }
}

__global__ void clamp_kernel(const float* x, float* clamped, int n, float limit) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    clamped[i] = clamp_keeping_nan(x[i], limit);
  }
}

constexpr Grid kGrid{1, 64, 0, nullptr};

}  // namespace

cudaError_t unpack_pairs(const uint32_t* pairs, float* values, int n, bool bf16) {
  return launch(bf16 ? unpack_kernel<logo::bf16> : unpack_kernel<logo::f16>, kGrid, pairs, values,
                n);
}

cudaError_t pack_pairs(const float* values, uint32_t* pairs, int n, bool bf16) {
  return launch(bf16 ? pack_kernel<logo::bf16> : pack_kernel<logo::f16>, kGrid, values, pairs, n);
}

cudaError_t clamp(const float* x, float* clamped, int n, float limit) {
  return launch(clamp_kernel, kGrid, x, clamped, n, limit);
}

}  // namespace planted
