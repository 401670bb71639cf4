// How functions shared by host and device code are declared.
#pragma once

// Internal linkage on purpose: the CPU sources are compiled once per instruction set, and the
// linker must never merge a function compiled for AVX-512 into the portable variant.
#if defined(__CUDACC__)
#define LOGO_METHOD __host__ __device__ __forceinline__
#define LOGO_FUNCTION static LOGO_METHOD
#else
#define LOGO_METHOD inline __attribute__((always_inline))  // members have external linkage
#define LOGO_FUNCTION static inline
#endif
