// Two sums of each column over all rows, the same on every run: blocks leave theirs in the
// workspace, and a second kernel adds them up in a fixed order. From there on in fp64, so that
// moments about any point become moments about the mean without loss.
#pragma once

#include <cuda_runtime.h>

#include "cuda/affinity_tiles.cuh"
#include "cuda/warp.cuh"
#include "logo/batch_norm.h"

namespace logo {
namespace cuda {

constexpr int kFinishColumns = 8;
constexpr int kFinishGroups = 32;
constexpr int kFinishThreads = kFinishColumns * kFinishGroups;

// Bytes of the blocks' sums: at most kSummingBlocks for each multiprocessor, each of a tile of 256
// columns, or one of each tile.
inline int64_t partial_bytes(int64_t width, const Limits& limits) {
  const int64_t tile = kMostLanes * kVector<bf16>;
  return (int64_t(limits.multiprocessors) * kSummingBlocks * tile + width) * 2 * 8;
}

// Doubles of shared memory that leave_sums takes.
template <int N>
constexpr int kSumsExchange = 2 * N * kAffinityThreads;

// Adds the sums of each thread to partials [row_blocks, 2, width]. All threads of the block come
// here, once none of them uses `exchange` any more.
template <class Sum, int N>
__device__ __forceinline__ void leave_sums(const AffinityPlace<N>& place, const Sum (&first)[N],
                                           const Sum (&second)[N], int64_t width, double* exchange,
                                           double* partials) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    exchange[k * kAffinityThreads + threadIdx.x] = first[k];
    exchange[(N + k) * kAffinityThreads + threadIdx.x] = second[k];
  }
  __syncthreads();
  // A thread for each column and each of its sums; they lie in the order of k, then of lanes.
  const int lanes = kAffinityThreads / place.rows;
  const int64_t tile_column = place.column - place.lane * N;
  for (int item = threadIdx.x; item < 2 * N * lanes; item += kAffinityThreads) {
    const int of_k = item / lanes, lane = item - of_k * lanes;
    const int which = of_k / N, k = of_k - which * N;
    const int64_t column = tile_column + lane * N + k;
    if (column >= width) continue;
    double sum = 0;
    for (int row = 0; row < place.rows; ++row) {
      sum += exchange[of_k * kAffinityThreads + row * lanes + lane];
    }
    partials[(2 * place.row_block + which) * width + column] = sum;
  }
}

// Both sums of column `column` of this block's kFinishColumns, in lane 0 of each warp.
__device__ __forceinline__ void add_partials(const double* partials, int64_t count, int64_t width,
                                             int64_t* column, double* first, double* second) {
  __shared__ double exchange[2][kFinishGroups][kFinishColumns + 1];
  const int own = threadIdx.x % kFinishColumns, group = threadIdx.x / kFinishColumns;
  const int64_t begin = int64_t(blockIdx.x) * kFinishColumns;
  double sums[2] = {0, 0};
  if (begin + own < width) {
#pragma unroll 8
    for (int64_t k = group; k < count; k += kFinishGroups) {
      sums[0] += __ldg(partials + 2 * k * width + begin + own);
      sums[1] += __ldg(partials + (2 * k + 1) * width + begin + own);
    }
  }
  exchange[0][group][own] = sums[0];
  exchange[1][group][own] = sums[1];
  __syncthreads();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  static_assert(kFinishThreads / 32 == kFinishColumns && kFinishGroups == 32);
  *column = begin + warp;
  *first = warp_sum(exchange[0][lane][warp]);
  *second = warp_sum(exchange[1][lane][warp]);
}

template <class Problem>
struct FinishArguments {
  Problem p;
  const double* partials;
  int64_t partial_count;
};

// Adds to a mean the pivot that was taken off the values of its column: the first of them.
template <class T>
__device__ __forceinline__ double add_pivot(double mean, const void* first_row, int64_t column) {
  return mean + double(to_float(static_cast<const T*>(first_row)[column]));
}
template <class T>
__device__ __forceinline__ double add_pivots(double mean, const AffinityHiddenProblem& p,
                                             int64_t column) {
  return add_pivot<T>(add_pivot<T>(mean, p.a, column), p.c, column);
}
template <class T>
__device__ __forceinline__ double add_pivots(double mean, const AffinityOutputProblem& p,
                                             int64_t column) {
  return add_pivot<T>(mean, p.y, column);
}

template <class T, class Problem>
__device__ __forceinline__ void finish_moments(const Problem& p, int64_t column, double first,
                                               double second) {
  const double values = double(p.all_pairs());
  double mean = first / values;
  double var = second / values - mean * mean;
  if (var < 0) var = 0;  // by rounding; NaN stays
  mean = add_pivots<T>(mean, p, column);
  if (p.norm_weight != nullptr) return fold_batch<float>(p, mean, var, values, column);
  float* const to = static_cast<float*>(p.moments);
  to[column] = float(mean);
  to[p.width + column] = float(var);
}

// MOMENTS: writes mean and biased variance from Σ d and Σ d², or the batch norm that they make;
// else the sums themselves, or the facts.
template <class T, bool MOMENTS, class Problem>
__device__ __forceinline__ void finish_sums(const FinishArguments<Problem>& a) {
  const Problem& p = a.p;
  int64_t column;
  double first, second;
  add_partials(a.partials, a.partial_count, p.width, &column, &first, &second);
  if (threadIdx.x % 32 != 0 || column >= p.width) return;
  if (MOMENTS) return finish_moments<T>(p, column, first, second);
  if (p.facts != nullptr) return write_facts_of<float>(p, first, second, column);
  float* const to = static_cast<float*>(p.sums);
  to[column] = float(first);
  to[p.width + column] = float(second);
}

// Counts the batch among those of the running statistics, before the finishing kernel reads their
// number.
template <class Problem>
__device__ __forceinline__ void count_batch(const Problem& p) {
  if (p.batches != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*p.batches;
}

// A thread for each column of a batch norm by constants.
constexpr int kFoldThreads = 128;
template <class T, class Problem>
__device__ __forceinline__ void fold_constants(const Problem& p) {
  const int64_t column = int64_t(blockIdx.x) * kFoldThreads + threadIdx.x;
  if (column < p.width) fold_running<T>(p, column);
}

inline Grid fold_grid(int64_t width, const Queue& queue) {
  return {unsigned((width + kFoldThreads - 1) / kFoldThreads), kFoldThreads, 0,
          static_cast<cudaStream_t>(queue.stream)};
}

inline Grid finish_grid(int64_t width, const Queue& queue) {
  return {unsigned((width + kFinishColumns - 1) / kFinishColumns), kFinishThreads, 0,
          static_cast<cudaStream_t>(queue.stream)};
}

}  // namespace cuda
}  // namespace logo
