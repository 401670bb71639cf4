// One chunk of an image's rows in shared memory, and how it is read.
#pragma once

#include <cuda_runtime.h>

#include "cuda/convert.cuh"
#include "logo/dtypes.h"

namespace logo {
namespace cuda {

// Elements of 16 bytes.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

template <class T>
struct Stage {
  const unsigned char* data;
  int pitch;    // bytes
  int columns;  // that count; up to the next vector the rows hold zeros

  __device__ __forceinline__ const unsigned char* row(int index) const {
    return data + index * pitch;
  }
  __device__ __forceinline__ int vectors() const { return (columns + kVector<T> - 1) / kVector<T>; }
  __device__ __forceinline__ int quads() const { return (columns + 3) / 4; }
};

__device__ __forceinline__ void widen(uint4 bits, float (&values)[4], float) {
  values[0] = __uint_as_float(bits.x);
  values[1] = __uint_as_float(bits.y);
  values[2] = __uint_as_float(bits.z);
  values[3] = __uint_as_float(bits.w);
}
template <class Half>
__device__ __forceinline__ void widen(uint4 bits, float (&values)[8], Half) {
  const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float2 pair = unpack<Half>(pairs[k]);
    values[2 * k] = pair.x;
    values[2 * k + 1] = pair.y;
  }
}

// 16 bytes of a row.
template <class T>
__device__ __forceinline__ void load_vector(const Stage<T>& stage, int row, int vector,
                                            float (&values)[kVector<T>]) {
  widen(*reinterpret_cast<const uint4*>(stage.row(row) + vector * 16), values, T());
}

// Four elements of a row.
__device__ __forceinline__ float4 load_quad(const Stage<float>& stage, int row, int quad) {
  return *reinterpret_cast<const float4*>(stage.row(row) + quad * 16);
}
template <class Half>
__device__ __forceinline__ float4 load_quad(const Stage<Half>& stage, int row, int quad) {
  const uint2 bits = *reinterpret_cast<const uint2*>(stage.row(row) + quad * 8);
  const float2 low = unpack<Half>(bits.x), high = unpack<Half>(bits.y);
  return make_float4(low.x, low.y, high.x, high.y);
}

}  // namespace cuda
}  // namespace logo
