// Square blocks, transposed.
#pragma once

#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// kLanes rows of kLanes numbers each; strides in numbers.
template <class T>
inline void transpose_block(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    __m512 rows[16], next[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = _mm512_loadu_ps(from + i * from_stride);
    // Each round rotates the bits of (row, column) by one.
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        next[2 * i] = _mm512_permutex2var_ps(rows[i], low, rows[i + 8]);
        next[2 * i + 1] = _mm512_permutex2var_ps(rows[i], high, rows[i + 8]);
      }
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) _mm512_storeu_ps(to + i * to_stride, rows[i]);
    return;
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    __m256 rows[8], pairs[8], quads[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    // Columns 0 … 3 of four rows, each beside the one four further on.
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      quads[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
      quads[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
      quads[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
      quads[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20));
      _mm256_storeu_ps(to + (i + 4) * to_stride,
                       _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31));
    }
    return;
  }
#endif
  for (int j = 0; j < kLanes<T>; ++j) {
    for (int i = 0; i < kLanes<T>; ++i) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

}  // namespace
}  // namespace cpu
}  // namespace logo
