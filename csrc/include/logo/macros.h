// Functions shared by host and device code.
#pragma once

// Internal linkage on purpose: the CPU sources are compiled once per instruction set, and the
// linker must never merge a function compiled for AVX-512 into the portable variant.
#if defined(__CUDACC__)
#define LOGO_FUNCTION static __host__ __device__ __forceinline__
#else
#define LOGO_FUNCTION static inline
#endif
