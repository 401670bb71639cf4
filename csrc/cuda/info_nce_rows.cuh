// Crops as they come, a warp to a row: read four numbers at a time, and divided by their norms.
#pragma once

#include <cuda_runtime.h>

#include "cuda/convert.cuh"
#include "cuda/divider.cuh"
#include "cuda/info_nce_norms.cuh"
#include "cuda/input.cuh"
#include "cuda/warp.cuh"

namespace logo {
namespace cuda {

struct QuadRow {
  RowAt at;
  bool together;  // four numbers lie in one aligned word
};

struct QuadRows {
  Rows rows;
  bool together = false;

  QuadRows() = default;
  QuadRows(const Rows& of, int64_t images, int64_t dim) : rows(of) {
    const auto whole = [](int64_t count, int64_t stride) { return count <= 1 || stride % 4 == 0; };
    together = of.element_stride == 1 && dim % 4 == 0 &&
               reinterpret_cast<uintptr_t>(of.data) % (4 * dtype_bytes(of.dtype)) == 0 &&
               whole(images, of.image_stride) && whole(of.count, of.crop_stride);
  }

  __device__ __forceinline__ QuadRow row(int64_t image, int64_t crop) const {
    return {{row_address(rows, image, crop), rows.dtype, rows.element_stride}, together};
  }
};

// Where query n = b·V + v stands.
struct QueryAt {
  int64_t image, crop;  // the crop among the global or among the local ones
  bool global;
};

struct Queries {
  QuadRows global, local;
  int64_t count = 0;  // B · V
  Divider crops;      // V

  __device__ __forceinline__ QueryAt at(int64_t query) const {
    const int64_t globals = global.rows.count;
    const int64_t image = crops.quotient(query), crop = query - image * crops.by;
    return crop < globals ? QueryAt{image, crop, true} : QueryAt{image, crop - globals, false};
  }
  __device__ __forceinline__ QuadRow row(const QueryAt& at) const {
    return (at.global ? global : local).row(at.image, at.crop);
  }
};

__device__ __forceinline__ float4 operator*(float factor, const float4& v) {
  return make_float4(factor * v.x, factor * v.y, factor * v.z, factor * v.w);
}
__device__ __forceinline__ float4 fma(float factor, const float4& v, const float4& to) {
  return make_float4(fmaf(factor, v.x, to.x), fmaf(factor, v.y, to.y), fmaf(factor, v.z, to.z),
                     fmaf(factor, v.w, to.w));
}
__device__ __forceinline__ float dot(const float4& v, const float4& w) {
  return fmaf(v.x, w.x, fmaf(v.y, w.y, fmaf(v.z, w.z, v.w * w.w)));
}

// Columns of a lane: 4 · (its number), and from there on in steps of this.
constexpr int kQuadStep = 4 * 32;
__device__ __forceinline__ int64_t first_quad() { return 4 * (threadIdx.x % 32); }

// Numbers that do not lie together.
template <class T>
__device__ __forceinline__ float4 gather(const RowAt& row, int64_t column, int64_t dim) {
  const T* const at = reinterpret_cast<const T*>(row.address) + column * row.element_stride;
  float v[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) v[k] = column + k < dim ? to_float(at[k * row.element_stride]) : 0.0f;
  return make_float4(v[0], v[1], v[2], v[3]);
}

// Zeros beyond the last column.
__device__ __forceinline__ float4 read_quad(const QuadRow& row, int64_t column, int64_t dim) {
  const DType dtype = row.at.dtype;
  if (!row.together) {
    return dtype == DType::f32    ? gather<float>(row.at, column, dim)
           : dtype == DType::bf16 ? gather<bf16>(row.at, column, dim)
                                  : gather<f16>(row.at, column, dim);
  }
  if (column >= dim) return make_float4(0, 0, 0, 0);
  if (dtype == DType::f32) return *reinterpret_cast<const float4*>(row.at.address + column * 4);
  const uint2 bits = *reinterpret_cast<const uint2*>(row.at.address + column * 2);
  const bool is_bf16 = dtype == DType::bf16;
  const float2 low = is_bf16 ? unpack<bf16>(bits.x) : unpack<f16>(bits.x);
  const float2 high = is_bf16 ? unpack<bf16>(bits.y) : unpack<f16>(bits.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

// A row over its norm is inverse · (factor · row): 0 of a zero row, NaN where it has NaN or inf.
struct Unit {
  float factor, inverse;

  __device__ __forceinline__ float4 of(const float4& v) const { return inverse * (factor * v); }
};

// The factor with which squares of a row neither overflow nor underflow, from their sum without.
__device__ __forceinline__ float factor_for(DType dtype, float squared) {
  if (dtype == DType::f16 || squares_well(squared)) return 1;
  return squared > 1 ? kFactorDown : kFactorUp;
}
__device__ __forceinline__ float inverse_norm(float squared) {
  if (squared == 0) return 0;
  return squared <= 3.4028235e38f ? 1 / sqrtf(squared) : __uint_as_float(0x7fffffff);
}

__device__ __forceinline__ float squared_norm(const QuadRow& row, int64_t dim, float factor) {
  float sum = 0;
#pragma unroll 1
  for (int64_t column = first_quad(); column < dim; column += kQuadStep) {
    const float4 v = factor * read_quad(row, column, dim);
    sum += dot(v, v);
  }
  return warp_sum(sum);
}

// By all lanes of a warp, as the next.
__device__ __forceinline__ Unit unit_of(const QuadRow& row, int64_t dim) {
  float squared = squared_norm(row, dim, 1);
  const float factor = factor_for(row.at.dtype, squared);
  if (factor != 1) squared = squared_norm(row, dim, factor);
  return {factor, inverse_norm(squared)};
}

// The cosine of a row whose unit is known with another, which is read once unless its norm is out
// of range.
__device__ __forceinline__ float cosine_with(const QuadRow& row, const Unit& unit,
                                             const QuadRow& other, int64_t dim) {
  float factor = 1;
  for (;;) {
    float product = 0, squared = 0;
#pragma unroll 1
    for (int64_t column = first_quad(); column < dim; column += kQuadStep) {
      const float4 v = factor * read_quad(other, column, dim);
      product += dot(unit.of(read_quad(row, column, dim)), v);
      squared += dot(v, v);
    }
    product = warp_sum(product);
    squared = warp_sum(squared);
    const float better = factor == 1 ? factor_for(other.at.dtype, squared) : factor;
    if (better == factor) return product * inverse_norm(squared);
    factor = better;
  }
}

}  // namespace cuda
}  // namespace logo
