// Arithmetic on the numbers of 16 bytes of a row, in fp32.
#pragma once

#include "cuda/facts.cuh"
#include "cuda/stage.cuh"

namespace logo {
namespace cuda {

template <int N>
__device__ __forceinline__ void clear(float (&values)[N]) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = 0;
}

template <int N>
__device__ __forceinline__ void scale(float (&values)[N], float factor) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] *= factor;
}

template <int N>
__device__ __forceinline__ void add(float (&values)[N], const float (&more)[N], float weight) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = fmaf(weight, more[k], values[k]);
}

template <int N>
__device__ __forceinline__ void clamp(float (&values)[N], float limit) {
#pragma unroll
  for (int k = 0; k < N; ++k) values[k] = clamp_keeping_nan(values[k], limit);
}

// SCALED: times the row's factor.
template <bool SCALED, class T>
__device__ __forceinline__ void load_row(const Stage<T>& stage, const Facts& facts, int row,
                                         int vector, float (&values)[kVector<T>]) {
  load_vector(stage, row, vector, values);
  if (SCALED) scale(values, facts.factor[row]);
}

// A thread's part of the columns of a stage: vectors first, first + step .. Where columns are few,
// groups of threads share them and deal the rows that are written among them.
struct ColumnShare {
  int first, step, group, groups;
  bool idle;

  __device__ explicit ColumnShare(int vectors) {
    groups = max(1, int(blockDim.x) / vectors);
    group = groups == 1 ? 0 : int(threadIdx.x) / vectors;
    step = groups == 1 ? int(blockDim.x) : vectors;
    first = int(threadIdx.x) - group * vectors;
    idle = group >= groups;
  }
};

}  // namespace cuda
}  // namespace logo
