// Facts of each row of a block's image, in shared memory, and the factors of rows whose norms leave
// the range that squares allow.
#pragma once

#include <cuda_runtime.h>

#include "cuda/gram.cuh"
#include "cuda/image_plan.h"
#include "cuda/stage.cuh"
#include "cuda/warp.cuh"
#include "logo/math.h"

namespace logo {
namespace cuda {

struct Facts {
  float4* coefficients;  // [rows] of a row's gradient; the meaning is the kernel's
  char** gradient;       // [rows] where a row's gradient begins; null: not wanted
  float* inverse;        // [rows] 1/‖factor · row‖, 0 for a zero row
  float* factor;         // [rows] a power of two; of use only where the image is SCALED
  float* limit;          // [rows] the largest magnitude of a gradient's elements as stored

  __device__ Facts(unsigned char* at, int rows)
      : coefficients(reinterpret_cast<float4*>(at)),
        gradient(reinterpret_cast<char**>(at + 16 * rows)),
        inverse(reinterpret_cast<float*>(at) + 6 * rows),
        factor(inverse + rows),
        limit(factor + rows) {}
};

// The largest magnitude in each row, into facts.factor. add: of this chunk and those before it.
template <class T>
__device__ void find_largest(const Stage<T>& stage, int rows, const Facts& facts, bool add) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int row = threadIdx.x / 32; row < rows; row += warps) {
    float most = add && lane == 0 ? facts.factor[row] : 0.0f;  // read by the thread that writes it
    for (int quad = lane; quad < stage.quads(); quad += 32) {
      const float4 v = load_quad(stage, row, quad);
      most = fmaxf(fmaxf(most, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
    }
    most = warp_max(most);
    if (lane == 0) facts.factor[row] = most;
  }
}

// From the largest magnitude m to the power of two that brings it to [1, 4): 2^(127 − exponent),
// between 2^−126 and 2^127, which brings the smallest denormal to 2^−22.
__device__ __forceinline__ void choose_factors(int rows, const Facts& facts) {
  for (int row = threadIdx.x; row < rows; row += blockDim.x) {
    const int exponent = (__float_as_uint(facts.factor[row]) >> 23) & 0xff;
    const int biased = min(max(254 - exponent, 1), 254);
    facts.factor[row] = __uint_as_float(uint32_t(biased) << 23);
  }
}

// 1/norm of every row, from the diagonal; whether any norm calls for scaled rows. Squares of fp16
// numbers never underflow, so that zero means a zero row; in other dtypes it may hide tiny numbers.
template <class T>
__device__ bool invert_norms(const Gram& gram, const Facts& facts) {
  bool extreme = false;
  for (int row = threadIdx.x; row < gram.rows; row += blockDim.x) {
    const float squared = gram(row, row);
    facts.inverse[row] = squared == 0 ? 0.0f : 1 / sqrtf(squared);
    extreme |=
        !squares_well(squared) && !(sizeof(T) == 2 && kDType<T> == DType::f16 && squared == 0);
  }
  return __syncthreads_or(extreme);
}

}  // namespace cuda
}  // namespace logo
