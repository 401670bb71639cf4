// The product of tensor cores that every architecture from sm_80 on has.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "logo/dtypes.h"

namespace logo::cuda {

// d += a·b for a [16, 16], b [16, 8], summed in fp32. All 32 lanes take part. With group = lane / 4
// and t = lane % 4, a lane holds
//   a: rows group, group + 8; columns 2t, 2t + 1 (a[0], a[1]), 2t + 8, 2t + 9 (a[2], a[3])
//   b: column group; rows 2t, 2t + 1 (b[0]), 2t + 8, 2t + 9 (b[1])
//   d: row group (d[0], d[1]), group + 8 (d[2], d[3]); columns 2t, 2t + 1
// with the lower index in the lower half of a register.
template <class Half>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<Half, bf16> || std::is_same_v<Half, f16>);
#if defined(LOGO_EMULATED)
  emulation::mma_m16n8k16(d, a, b, std::is_same_v<Half, bf16>);
#else
  if constexpr (std::is_same_v<Half, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace logo::cuda
