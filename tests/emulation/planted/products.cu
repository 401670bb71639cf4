#include "cuda/launch.cuh"
#include "cuda/mma.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

// Registers as they come, [32, ·] in order of the lanes: the test lays them out.
template <class Half>
__global__ void fragments_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  const unsigned lane = threadIdx.x;
  uint32_t left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) left[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) right[i] = b[2 * lane + i];
  for (int i = 0; i < 4; ++i) sum[i] = d[4 * lane + i];
  mma_m16n8k16<Half>(sum, left, right);
  for (int i = 0; i < 4; ++i) d[4 * lane + i] = sum[i];
}

// a [16, 16] by rows, b [16, 8] by columns, d [16, 8] by rows, as a kernel would load them.
__global__ void matrix_kernel(const uint16_t* a, const uint16_t* b, float* d, Mistake mistake) {
  const int group = int(threadIdx.x) / 4, in_group = int(threadIdx.x) % 4;
  const auto pair = [](const uint16_t* at) { return uint32_t(at[1]) << 16 | at[0]; };
  uint32_t left[4], right[2];
  float sum[4] = {};
  for (int i = 0; i < 4; ++i) {
    int down = i % 2, along = i / 2;
    if (mistake == Mistake::wrong_fragment) {
      down = i / 2;
      along = i % 2;
    }
    left[i] = pair(a + (group + 8 * down) * 16 + 2 * in_group + 8 * along);
  }
  for (int i = 0; i < 2; ++i) right[i] = pair(b + group * 16 + 2 * in_group + 8 * i);
  mma_m16n8k16<logo::bf16>(sum, left, right);
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + 2 * in_group + i % 2] = sum[i];
}

}  // namespace

cudaError_t fragments_product(const uint32_t* a, const uint32_t* b, float* d, bool bf16) {
  return launch(bf16 ? fragments_kernel<logo::bf16> : fragments_kernel<logo::f16>,
                {1, 32, 0, nullptr}, a, b, d);
}

cudaError_t matrix_product(const uint16_t* a, const uint16_t* b, float* d, Mistake mistake) {
  return launch(matrix_kernel, {1, 32, 0, nullptr}, a, b, d, mistake);
}

}  // namespace planted
