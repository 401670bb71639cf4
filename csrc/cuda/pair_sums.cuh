// Two sums of each column over all rows, the same on every run: blocks leave theirs in the
// workspace, and a second kernel adds them up in a fixed order. From there on in fp64, so that
// moments about any point become moments about the mean without loss.
#pragma once

#include <cuda_runtime.h>

#include "cuda/pair_tiles.cuh"
#include "cuda/warp.cuh"
#include "logo/batch_norm.h"

namespace logo {
namespace cuda {

constexpr int kFinishColumns = 8;
constexpr int kFinishGroups = 32;
constexpr int kFinishThreads = kFinishColumns * kFinishGroups;

// What blocks leave: at most kSummingBlocks for each multiprocessor, each of a tile of 256 columns,
// or one of each tile.
inline int64_t partial_bytes(int64_t width, const Limits& limits) {
  const int64_t tile = kMostLanes * kVector<bf16>;
  return (int64_t(limits.multiprocessors) * kSummingBlocks * tile + width) * 2 * 8;
}

// Of shared memory, in doubles.
template <int N>
constexpr int kSumsExchange = 2 * N * kPairThreads;

// From the sums of each thread to partials [row_blocks, 2, width]. All threads of the block come
// here, when none uses `exchange` any more.
template <class Sum, int N>
__device__ __forceinline__ void leave_sums(const PairPlace<N>& place, const Sum (&first)[N],
                                           const Sum (&second)[N], int64_t width, double* exchange,
                                           double* partials) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    exchange[k * kPairThreads + threadIdx.x] = first[k];
    exchange[(N + k) * kPairThreads + threadIdx.x] = second[k];
  }
  __syncthreads();
  // A thread for each column and each of its sums; they lie in the order of k, then of lanes.
  const int lanes = kPairThreads / place.rows;
  const int64_t tile_column = place.column - place.lane * N;
  for (int item = threadIdx.x; item < 2 * N * lanes; item += kPairThreads) {
    const int of_k = item / lanes, lane = item - of_k * lanes;
    const int which = of_k / N, k = of_k - which * N;
    const int64_t column = tile_column + lane * N + k;
    if (column >= width) continue;
    double sum = 0;
    for (int row = 0; row < place.rows; ++row) {
      sum += exchange[of_k * kPairThreads + row * lanes + lane];
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

struct FinishArguments {
  const double* partials;
  int64_t partial_count, width;
  float* to;  // [2, width]: moments or sums, where they do not become what follows
  // Moments only: values that the sums are of, and what was taken off each of them, the sum of the
  // first rows of these; the second may be absent.
  int64_t values;
  const void *pivot, *second_pivot;
  float* norm;           // moments: written if the batch norm has a weight; sums: read for facts
  BatchNorm batch_norm;  // of moments
  float* facts;          // of sums, may be null
  const float* weight;   // w₃; null: facts are those of the hidden layer
};

template <class T>
__device__ __forceinline__ void finish_moments(const FinishArguments& a, int64_t column,
                                               double first, double second) {
  double mean = first / double(a.values);
  double var = second / double(a.values) - mean * mean;
  if (var < 0) var = 0;  // by rounding; NaN stays
  mean += double(to_float(static_cast<const T*>(a.pivot)[column]));
  if (a.second_pivot != nullptr) {
    mean += double(to_float(static_cast<const T*>(a.second_pivot)[column]));
  }
  if (a.batch_norm.weight != nullptr) {
    fold_batch<float>(a.batch_norm, mean, var, double(a.values), column, a.width, a.norm);
    return;
  }
  a.to[column] = float(mean);
  a.to[a.width + column] = float(var);
}

// MOMENTS: from Σ d and Σ d² to mean and biased variance, or to what batch norm makes of them; else
// the sums themselves, or the facts.
template <class T, bool MOMENTS>
__device__ __forceinline__ void finish_sums(const FinishArguments& a) {
  int64_t column;
  double first, second;
  add_partials(a.partials, a.partial_count, a.width, &column, &first, &second);
  if (threadIdx.x % 32 != 0 || column >= a.width) return;
  if (MOMENTS) return finish_moments<T>(a, column, first, second);
  if (a.facts == nullptr) {
    a.to[column] = float(first);
    a.to[a.width + column] = float(second);
  } else if (a.weight == nullptr) {
    write_facts(a.norm, first, second, a.values, column, a.width, a.facts);
  } else {
    write_output_facts(a.norm, a.weight, first, second, a.values, column, a.width, a.facts);
  }
}

// What a launch of moments becomes, and of sums.
template <class Problem>
FinishArguments finish_moments_of(const Problem& p, const void* workspace, int64_t partial_count,
                                  int64_t values, const void* pivot, const void* second_pivot) {
  return {static_cast<const double*>(workspace),
          partial_count,
          p.width,
          static_cast<float*>(p.moments),
          values,
          pivot,
          second_pivot,
          static_cast<float*>(p.norm),
          p.batch_norm,
          nullptr,
          nullptr};
}
template <class Problem>
FinishArguments finish_sums_of(const Problem& p, const void* workspace, int64_t partial_count,
                               const void* weight) {
  return {static_cast<const double*>(workspace),
          partial_count,
          p.width,
          static_cast<float*>(p.sums),
          p.values,
          nullptr,
          nullptr,
          static_cast<float*>(p.norm),
          BatchNorm(),
          static_cast<float*>(p.facts),
          static_cast<const float*>(weight)};
}

// The batches that running statistics are of, before a launch of moments reads how many.
__device__ __forceinline__ void count_batch(const BatchNorm& batch_norm) {
  if (batch_norm.batches != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*batch_norm.batches;
}

struct FoldArguments {
  BatchNorm batch_norm;
  float* norm;
  int64_t width;
};

// A thread for each column of a batch norm by constants.
constexpr int kFoldThreads = 128;
template <class T>
__device__ __forceinline__ void fold_constants(const FoldArguments& a) {
  const int64_t column = int64_t(blockIdx.x) * kFoldThreads + threadIdx.x;
  if (column < a.width) fold_running<T>(a.batch_norm, column, a.width, a.norm);
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
