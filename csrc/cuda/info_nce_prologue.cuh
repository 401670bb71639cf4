// InfoNCE's first launch: all that the pass over the negatives needs of single rows.
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
template <class T>
__device__ __forceinline__ void write_operand(const InfoNCEArguments& a, int64_t query,
                                              const QuadRow& row, const Unit& unit) {
  const int planes = a.plan.planes;
  T* const to = reinterpret_cast<T*>(a.prepared) + query * planes * a.plan.dim;
  const bool there = query < a.queries.count;
#pragma unroll 1
  for (int64_t column = first_quad(); column < a.plan.dim; column += kQuadStep) {
    float4 v = make_float4(0, 0, 0, 0);
    if (there) v = kQueryLift<T> * unit.of(read_quad(row, column, a.dim));
    if constexpr (std::is_same_v<T, float>) {
      *reinterpret_cast<float4*>(to + column) = v;
    } else {
#pragma unroll 1
      for (int plane = 0; plane < planes; ++plane) {
        const uint2 bits = make_uint2(pack<T>(v.x, v.y), pack<T>(v.z, v.w));
        *reinterpret_cast<uint2*>(to + plane * a.plan.dim + column) = bits;
        const float2 low = unpack<T>(bits.x), high = unpack<T>(bits.y);
        v = make_float4(v.x - low.x, v.y - low.y, v.z - high.x, v.w - high.y);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void prepare_query(const InfoNCEArguments& a, int64_t query) {
  const QueryAt at = a.queries.at(query < a.queries.count ? query : 0);
  const QuadRow row = a.queries.row(at);
  const Unit unit = unit_of(row, a.dim);
  write_operand<T>(a, query, row, unit);
  if (query >= a.queries.count) return;
  const int64_t positives = a.positives.rows.count;
#pragma unroll 1
  for (int64_t p = 0; p < positives; ++p) {
    const float found = cosine_with(row, unit, a.positives.row(at.image, p), a.dim);
    if (threadIdx.x % 32 == 0) a.pull[query * positives + p] = found;  // until the epilogue
  }
}

// A warp for each query and each negative, those that only fill the last tile included. Queries
// take longest: they come first.
template <class T>
__global__ void __launch_bounds__(kPrologueThreads)
    info_nce_prologue_kernel(const __grid_constant__ InfoNCEArguments a) {
  if (blockIdx.x == 0 && threadIdx.x == 0) *a.finished = 0;
  const int64_t row = int64_t(blockIdx.x) * (kPrologueThreads / 32) + int64_t(threadIdx.x / 32);
  const int64_t queries = a.plan.query_tiles * a.plan.rows;
  if (row < queries) {
    prepare_query<T>(a, row);
    return;
  }
  const int64_t negative = row - queries;
  if (negative >= a.plan.tiles * a.plan.tile) return;
  float inverse = 0;
  if (negative < a.negatives.count) {
    inverse = encode_inverse<T>(a.negatives.row(negative), a.dim, a.negatives.as_is);
  }
  if (threadIdx.x % 32 == 0) a.inverse[negative] = inverse;
}

}  // namespace cuda
}  // namespace logo
