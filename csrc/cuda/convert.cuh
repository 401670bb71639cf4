// Pairs of 16-bit floats in a register, and limits.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "logo/dtypes.h"

namespace logo::cuda {

// The lower half in .x.
template <class Half>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  static_assert(std::is_same_v<Half, bf16> || std::is_same_v<Half, f16>);
#if defined(LOGO_EMULATED)
  return make_float2(to_float(Half{uint16_t(pair)}), to_float(Half{uint16_t(pair >> 16)}));
#else
  if constexpr (std::is_same_v<Half, bf16>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000));
  } else {
    float2 values;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.f32.f16 %0, low;\n"
        "cvt.f32.f16 %1, high;\n"
        "}"
        : "=f"(values.x), "=f"(values.y)
        : "r"(pair));
    return values;
  }
#endif
}

// Rounds to nearest even.
template <class Half>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  static_assert(std::is_same_v<Half, bf16> || std::is_same_v<Half, f16>);
#if defined(LOGO_EMULATED)
  Half lower, upper;
  from_float(low, &lower);
  from_float(high, &upper);
  return uint32_t(upper.bits) << 16 | lower.bits;
#else
  uint32_t pair;  // the instructions name the upper half first
  if constexpr (std::is_same_v<Half, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
#endif
}

// fminf and fmaxf would turn NaN into the limit.
__device__ __forceinline__ float clamp_keeping_nan(float x, float limit) {
#if defined(LOGO_EMULATED)
  return x > limit ? limit : x < -limit ? -limit : x;
#else
  float clamped;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(clamped) : "f"(x), "f"(limit));
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(clamped) : "f"(clamped), "f"(-limit));
  return clamped;
#endif
}

}  // namespace logo::cuda
