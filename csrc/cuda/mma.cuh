// The product of tensor cores that every architecture from sm_80 on has, and loads of its operands.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/copy.cuh"
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

// Four matrices of 8 rows of 16 bytes from shared memory: lane l gives the address, a multiple of
// 16, of row l % 8 of matrix l / 8. Of matrix i a lane receives into r[i], with group = lane / 4
// and t = lane % 4, bytes 4t .. 4t + 3 of row `group`: the fragment of an operand whose contraction
// runs along rows. TRANSPOSED: the 16-bit elements of column `group` in rows 2t (lower half) and 2t
// + 1.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#if defined(LOGO_EMULATED)
  emulation::load_matrices(r, row, TRANSPOSED);
#else
  if constexpr (TRANSPOSED) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
  }
#endif
}

}  // namespace logo::cuda
