#include "cuda/launch.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

// The number of the lane before, or after; those at the ends have their own.
__global__ void neighbours_kernel(const float* x, float* out, int step, Mistake mistake) {
  __shared__ float buffer[32];
  const int lane = int(threadIdx.x);
  buffer[lane] = x[lane];
  if (mistake != Mistake::no_warp_barrier) __syncwarp();
  out[lane] = buffer[min(max(lane + step, 0), 31)];
}

__global__ void shuffles_kernel(const int* x, int* out) {
  const int thread = int(threadIdx.x), value = x[thread];
  const unsigned all = 0xffffffff;
  const auto put = [&](int row, int result) { out[row * 64 + thread] = result; };
  put(0, __shfl_sync(all, value, 35));
  put(1, __shfl_sync(all, value, thread + 3, 8));
  put(2, __shfl_up_sync(all, value, 3, 16));
  put(3, __shfl_down_sync(all, value, 5));
  put(4, int(__shfl_xor_sync(all, double(value), 9)));
  put(5, int(__ballot_sync(all, value & 1)));
  put(6, 2 * __any_sync(all, value == x[40]) + __all_sync(all, value >= x[40]));
  put(7, __reduce_add_sync(all, value));
  put(8, __reduce_max_sync(all, value));
  put(9, __reduce_min_sync(all, value));
  // The quarters of a warp go their own ways.
  const unsigned quarter = 0xffu << (thread % 32 / 8 * 8);
  int sum = value;
  for (int step = 1; step < 8; step *= 2) sum += __shfl_xor_sync(quarter, sum, step);
  for (int i = 0; i < thread % 32 / 8; ++i) __syncwarp(quarter);
  __syncwarp();
  put(10, sum);
}

__global__ void divided_kernel(const int* x, int* out, Mistake mistake) {
  const int lane = int(threadIdx.x);
  unsigned mask = lane < 16 ? 0x0000ffff : 0xffff0000;
  if (mistake == Mistake::part_of_warp) mask = 0xffffffff;
  if (mistake == Mistake::not_in_mask) mask = ~mask;
  if (lane < 16) {
    out[lane] = __shfl_xor_sync(mask, x[lane], 1);
  } else {
    out[lane] = int(__ballot_sync(mask, x[lane] & 1));
  }
}

}  // namespace

cudaError_t neighbours(const float* x, float* out, int step, Mistake mistake) {
  return launch(neighbours_kernel, {1, 32, 0, nullptr}, x, out, step, mistake);
}

cudaError_t shuffles(const int* x, int* out) {
  return launch(shuffles_kernel, {1, 64, 0, nullptr}, x, out);
}

cudaError_t divided_warp(const int* x, int* out, Mistake mistake) {
  return launch(divided_kernel, {1, 32, 0, nullptr}, x, out, mistake);
}

}  // namespace planted
