// InfoNCE's first launch: single rows, made ready for the pass over the negatives.
//
// Queries become unit operands of the tensor cores, in the order n = b·V + v; their cosines with
// their positives are found in fp32 on the way; negatives get their inverse norms.
#pragma once

#include <cuda_runtime.h>

#include "cuda/info_nce_arguments.cuh"

namespace logo {
namespace cuda {

constexpr int kPrologueThreads = 256;

// A query as an operand, its planes one after another; zeros up to the end of the last tile.
template <class T, int N>
__device__ __forceinline__ void write_operand(const InfoNCEArguments& a, int64_t query,
                                              const CropRow& row, const Unit& unit) {
  const int planes = a.plan.planes;
  T* const to = reinterpret_cast<T*>(a.prepared) + query * planes * a.plan.dim;
  const bool there = query < a.count;
#pragma unroll 1
  for (int64_t column = first_column<N>(); column < a.plan.dim; column += kColumnStep<N>) {
    Word<N> w = {};
    if (there) w = kQueryLift<T> * unit.of(read<N>(row, column, a.p.dim));
#pragma unroll 1
    for (int plane = 0; plane < planes; ++plane) {
      T* const at = to + plane * a.plan.dim + column;
      write(w, at);
#pragma unroll
      for (int k = 0; k < N; ++k) w.v[k] -= to_float(at[k]);
    }
  }
}

template <class T, int N>
__device__ __forceinline__ void prepare_query(const InfoNCEArguments& a, int64_t query) {
  const QueryAt at = a.at(query < a.count ? query : 0);
  const CropRow row = a.row(at);
  const Unit unit = unit_of<N>(row, a.p.dim);
  write_operand<T, N>(a, query, row, unit);
  if (query >= a.count) return;
#pragma unroll 1
  for (int64_t p = 0; p < a.p.positives.count; ++p) {
    const float found = cosine_with<N>(row, unit, CropRow(a.p.positives, at.image, p), a.p.dim);
    // Until the epilogue.
    if (threadIdx.x % 32 == 0) a.pull_of(query)[p] = found;
  }
}

// A warp for each query and each negative, those that only fill the last tile included. Queries
// take longest: they come first.
template <class T>
__global__ void __launch_bounds__(kPrologueThreads, 5)
    info_nce_prologue_kernel(const __grid_constant__ InfoNCEArguments a) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.finished = 0;
  const int64_t row = int64_t(blockIdx.x) * (kPrologueThreads / 32) + int64_t(threadIdx.x / 32);
  const int64_t queries = a.plan.query_tiles * a.plan.rows;
  if (row < queries) {
    if (a.in_quads) {
      prepare_query<T, 4>(a, row);
    } else {
      prepare_query<T, 1>(a, row);
    }
    return;
  }
  const int64_t negative = row - queries;
  if (negative >= a.plan.tiles * a.plan.tile) return;
  float inverse = 0;
  if (negative < a.negatives.count) {
    inverse = encode_inverse<T>(a.negatives.row(negative), a.p.dim, a.negatives.as_is);
  }
  if (threadIdx.x % 32 == 0) a.inverse[negative] = inverse;
}

}  // namespace cuda
}  // namespace logo
