// Any positive τ: what of it the kernels multiply by and divide by stays a number.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "cuda/convert.cuh"

namespace logo {
namespace cuda {

constexpr float kMostFloat = 3.4028234663852886e38f, kLeastNormal = 0x1p-126f;

// A τ that the host knows, never zero. What one below fp32 moves, in a loss that fp32 holds, is
// less than an error of the cosines.
inline float nearest(double tau) {
  return tau > double(kMostFloat) ? INFINITY : tau < 0x1p-149 ? 0x1p-149f : float(tau);
}

// log2(e)/τ as a factor of cosines' differences, of which 0 stays 0 and -inf stays -inf. Those that
// would tell a greater one apart are less than errors of the cosines.
inline float steepness(double scale) {
  return scale > double(kMostFloat)     ? kMostFloat
         : scale < double(kLeastNormal) ? kLeastNormal
                                        : float(scale);
}
__device__ __forceinline__ float steepness(float scale) {
  return fminf(fmaxf(scale, kLeastNormal), kMostFloat);
}

// The power of two by which losses, as large as 2/τ, are multiplied before they are summed.
__device__ __forceinline__ float loss_unit(float tau) { return tau < 0x1p-60f ? 0x1p-64f : 1.0f; }

__device__ __forceinline__ float finite(float value) {
  return clamp_keeping_nan(value, kMostFloat);
}

// 2^power, for exponents of normal numbers.
__device__ __forceinline__ float power_of_two(int power) {
  return __int_as_float((power + 127) << 23);
}

// A positive number as mantissa · 2^power, with a mantissa of about one: it need not be one of
// fp32.
struct Scaled {
  float mantissa;
  int power;

  Scaled() = default;
  explicit Scaled(double value) { mantissa = float(frexp(value, &power)); }
  __device__ __forceinline__ explicit Scaled(float value) {
    const bool small = value < 0x1p-64f;  // a subnormal number has no exponent
    const float lifted = small ? value * 0x1p64f : value;
    const int bits = __float_as_int(lifted), exponent = bits >> 23;
    mantissa = exponent == 255 ? value : __int_as_float((bits & 0x7fffff) | 0x3f800000);
    power = exponent - 127 - (small ? 64 : 0);
  }
};

// factor · inverse / τ in two factors, one after the other: their product need not be a number.
// factor: a power of two.
struct Over {
  float first, second;

  __device__ __forceinline__ Over(float factor, float inverse, const Scaled& tau) {
    const Scaled quotient(inverse / tau.mantissa);
    int power = quotient.power - tau.power + (__float_as_int(factor) >> 23) - 127;
    power = power > 252 ? 252 : power < -252 ? -252 : power;  // beyond, nothing is a number
    first = power_of_two(power / 2);
    second = quotient.mantissa * power_of_two(power - power / 2);
  }
};

}  // namespace cuda
}  // namespace logo
