#include "cuda/barriers.cuh"

#include "cuda/launch.cuh"
#include "cuda/shared.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

__global__ void sum_kernel(const float* x, float* sums, Mistake mistake) {
  auto* partial = reinterpret_cast<float*>(dynamic_shared());
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  partial[thread] = x[blockIdx.x * blockDim.x + threadIdx.x];
  if (mistake != Mistake::no_barrier) __syncthreads();
  for (int half = threads / 2; half > 0; half /= 2) {
    if (thread < half) partial[thread] += partial[thread + half];
    __syncthreads();
  }
  if (thread == 0) sums[blockIdx.x] = partial[0];
}

__global__ void uniform_kernel(int* out, Mistake mistake) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  if (mistake == Mistake::early_exit && thread == threads - 1) return;
  if (mistake == Mistake::part_of_block) {
    if (thread < 32) __syncthreads();
    __syncwarp();
  } else if (mistake == Mistake::wrong_kind) {
    if (thread == 0) {
      __syncthreads();
    } else {
      __syncthreads_or(1);
    }
  } else if (thread % 2 == 0) {  // one barrier, though its calls stand in two places
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[thread] = __syncthreads_count(thread % 3 == 0);
  out[threads + thread] = __syncthreads_or(thread == 5);
  out[2 * threads + thread] = __syncthreads_and(thread != 5);
  out[3 * threads + thread] = __syncthreads_or(0);
  out[4 * threads + thread] = __syncthreads_and(1);
}

// Warps 0 and 1 fill, warps 2 and 3 empty a buffer.
__global__ void producers_kernel(const float* x, float* out, int rounds, Mistake mistake) {
  __shared__ float buffer[64];
  const int thread = int(threadIdx.x);
  const int threads = mistake == Mistake::wrong_count ? 96 : 128;
  for (int round = 0; round < rounds; ++round) {
    if (thread < 64) {
      if (round > 0) named_barrier_sync(2, threads);
      buffer[thread] = x[round * 64 + thread];
      if (mistake != Mistake::part_of_warps || thread != 7) named_barrier_arrive(1, threads);
    } else {
      if (mistake != Mistake::no_barrier) named_barrier_sync(1, threads);
      out[round * 64 + thread - 64] = buffer[127 - thread];
      if (round + 1 < rounds) named_barrier_arrive(2, threads);
    }
  }
}

}  // namespace

cudaError_t block_sum(const float* x, float* sums, int blocks, int threads, Mistake mistake) {
  const Grid grid{unsigned(blocks), unsigned(threads), threads * sizeof(float), nullptr};
  return launch(sum_kernel, grid, x, sums, mistake);
}

cudaError_t uniform_barrier(int* out, int threads, Mistake mistake) {
  return launch(uniform_kernel, {1, unsigned(threads), 0, nullptr}, out, mistake);
}

cudaError_t producers(const float* x, float* out, int rounds, Mistake mistake) {
  return launch(producers_kernel, {1, 128, 0, nullptr}, x, out, rounds, mistake);
}

}  // namespace planted
