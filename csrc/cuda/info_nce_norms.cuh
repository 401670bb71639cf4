// Inverse norms of negatives in one float each, and factors for rows whose norms are out of range.
//
// A weight of the mean is p/‖n‖ in the dtype of the negatives, and its product with n is summed in
// fp32: both have to hold. Rows whose norms do not allow it are rare; where a tile has one, the
// block multiplies it by a power of two in shared memory.
#pragma once

#include <cuda_runtime.h>

#include "cuda/input.cuh"
#include "cuda/stage.cuh"
#include "cuda/warp.cuh"
#include "logo/math.h"

namespace logo {
namespace cuda {

// By all lanes of a warp: the squared norm of a row times a factor. vectors: see in_vectors.
template <class T>
__device__ float squared_norm(const RowAt& row, int64_t dim, bool vectors, float factor) {
  float sum = 0;
  if (vectors) {
#pragma unroll 2
    for (int64_t k = threadIdx.x % 32; k < dim / kVector<T>; k += 32) {
      float values[kVector<T>];
      widen(reinterpret_cast<const uint4*>(row.address)[k], values, T());
      float part = 0;
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i)
        part = fmaf(values[i] * factor, values[i] * factor, part);
      sum += part;
    }
  } else {
#pragma unroll 1
    for (int64_t k = threadIdx.x % 32; k < dim; k += 32) {
      const float value = read_element(row, k) * factor;
      sum = fmaf(value, value, sum);
    }
  }
  return warp_sum(sum);
}

// 1/√x to an ulp, of a normal number: an approximation and a step of Newton's method, where
// division and root would each be a call.
__device__ __forceinline__ float inverse_root(float x) {
  const float root = rsqrtf(x);
  return fmaf(0.5f * root, fmaf(-x * root, root, 1.0f), root);
}

// In wide dtypes a row out of range is either larger or smaller than all others by far, so that one
// factor each does for its square.
constexpr float kFactorDown = 0x1p-96f, kFactorUp = 0x1p96f;
// Norms of up to 2^134 and of 2^-149 on: these keep the two kinds on either side of one.
constexpr float kMarkDown = 0x1p66f, kMarkUp = 0x1p-60f;

// The float that is kept of a row: 1/norm; 0 of a zero row; less than 0 of a row out of range, see
// decode_inverse; NaN where the row has NaN or inf.
template <class T>
__device__ float encode_inverse(const RowAt& row, int64_t dim, bool vectors) {
  const float nan = __uint_as_float(0x7fffffff), most = 3.4028235e38f;
  float squared = squared_norm<T>(row, dim, vectors, 1.0f);
  if constexpr (std::is_same_v<T, f16>) {
    if (squared == 0) return 0;  // squares of fp16 numbers neither underflow nor overflow
    if (!(squared <= most)) return nan;
    const float inverse = inverse_root(squared);
    return inverse >= 0x1p-6f && inverse <= 0x1p3f ? inverse : -inverse;
  } else {
    if (squares_well(squared)) return inverse_root(squared);
    const bool down = squared > 1;
    squared = squared_norm<T>(row, dim, vectors, down ? kFactorDown : kFactorUp);
    if (squared == 0) return 0;
    if (!(squared <= most)) return nan;
    return -(down ? kMarkDown : kMarkUp) * inverse_root(squared);
  }
}

struct Rescaled {
  float inverse, factor;  // n / ‖n‖ = inverse · (factor · n)
};

template <class T>
__device__ __forceinline__ Rescaled decode_inverse(float kept) {
  if constexpr (std::is_same_v<T, f16>) {  // to norms from a half to one
    const uint32_t bits = __float_as_uint(-kept);
    return {__uint_as_float((bits & 0x007fffff) | 0x3f800000), __uint_as_float(bits & 0x7f800000)};
  } else {
    const bool down = kept < -1;
    return {-kept / (down ? kMarkDown : kMarkUp), down ? kFactorDown : kFactorUp};
  }
}

}  // namespace cuda
}  // namespace logo
