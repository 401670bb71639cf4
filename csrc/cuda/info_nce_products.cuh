// The two products of InfoNCE on the tensor cores: scores = queries · negativesᵀ and
// mean += weights · negatives, from the same rows in shared memory.
//
// Operands of more precision than the negatives' are sums of 16-bit parts: queries and weights of
// two parts against fp16 (22 bits), three against bf16 (24 bits), and where the negatives are fp32
// everything of three bf16 parts (less those whose product is below 2^-24 of the whole). The tensor
// cores cut sums off instead of rounding them, a bias that grows with their length, so these
// products begin at zero every 16 steps and are added up outside.
#pragma once

#include <cuda_runtime.h>

#include "cuda/convert.cuh"
#include "cuda/info_nce_arguments.cuh"
#include "cuda/mma.cuh"

namespace logo {
namespace cuda {

template <class T>
constexpr int kNegativeParts = std::is_same_v<T, float> ? 3 : 1;

// Parts of two neighbours of an operand, the largest first.
template <class H, int PARTS>
__device__ __forceinline__ void split(float low, float high, uint32_t (&parts)[PARTS]) {
#pragma unroll
  for (int k = 0; k < PARTS; ++k) {
    parts[k] = pack<H>(low, high);
    if (k + 1 == PARTS) break;
    const float2 taken = unpack<H>(parts[k]);
    low -= taken.x;
    high -= taken.y;
  }
}

// d += a·b, a and b sums of their parts.
template <class H, int A, int B>
__device__ __forceinline__ void add_product(float (&d)[4], const uint32_t (&a)[A][4],
                                            const uint32_t (&b)[B][2]) {
  if constexpr (A == 1 && B == 1) {
    mma_m16n8k16<H>(d, a[0], b[0]);
  } else {
    float sum[4] = {};
    constexpr int kOrders = A > B ? A : B;
#pragma unroll
    for (int order = kOrders - 1; order >= 0; --order) {  // the smallest first
#pragma unroll
      for (int i = 0; i < A; ++i) {
        if (order - i >= 0 && order - i < B) mma_m16n8k16<H>(sum, a[i], b[order - i]);
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) d[k] += sum[k];
  }
}

// 16 queries, 16 columns from `column` on. `plane` bytes from one part to the next.
template <class T, int PARTS>
__device__ __forceinline__ void load_queries(uint32_t (&a)[PARTS][4], const unsigned char* rows,
                                             int plane, int pitch, int column) {
  const int lane = threadIdx.x % 32;
  const unsigned char* const at =
      rows + lane % 16 * pitch + lane / 16 * 16 + column * int(sizeof(T));
  if constexpr (std::is_same_v<T, float>) {
    uint32_t words[2][4];
    load_matrices<false>(words[0], at);
    load_matrices<false>(words[1], at + 32);
    // A lane has columns t, t + 4, t + 8, t + 12, here and in load_negatives.
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int half = k / 2, row = k % 2;
      uint32_t parts[PARTS];
      split<bf16>(__uint_as_float(words[half][row]), __uint_as_float(words[half][row + 2]), parts);
#pragma unroll
      for (int part = 0; part < PARTS; ++part) a[part][k] = parts[part];
    }
  } else {
#pragma unroll
    for (int part = 0; part < PARTS; ++part) load_matrices<false>(a[part], at + part * plane);
  }
}

// 16 negatives as columns of the operand, 16 of their columns as its rows.
template <class T, int B = kNegativeParts<T>>
__device__ __forceinline__ void load_negatives(uint32_t (&b)[2][B][2], const unsigned char* rows,
                                               int pitch, int column) {
  const int lane = threadIdx.x % 32;
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      uint32_t words[4];
      load_matrices<false>(words,
                           rows + (8 * side + lane % 8) * pitch + lane / 8 * 16 + column * 4);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t parts[B];
        split<bf16>(__uint_as_float(words[2 * k]), __uint_as_float(words[2 * k + 1]), parts);
#pragma unroll
        for (int part = 0; part < B; ++part) b[side][part][k] = parts[part];
      }
    }
  } else {
    uint32_t r[4];
    load_matrices<false>(
        r, rows + (lane % 8 + lane / 16 * 8) * pitch + lane / 8 % 2 * 16 + column * 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) b[k / 2][0][k % 2] = r[k];
  }
}

// 16 negatives as rows of the operand, 16 of their columns as its columns.
template <class T, int B = kNegativeParts<T>>
__device__ __forceinline__ void load_columns(uint32_t (&b)[2][B][2], const unsigned char* rows,
                                             int pitch, int column) {
  const int lane = threadIdx.x % 32;
  if constexpr (std::is_same_v<T, float>) {
    const int group = lane / 4, t = lane % 4;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const unsigned char* const at =
            rows + (2 * t + 8 * k) * pitch + (column + 8 * side + group) * 4;
        uint32_t parts[B];
        split<bf16>(*reinterpret_cast<const float*>(at),
                    *reinterpret_cast<const float*>(at + pitch), parts);
#pragma unroll
        for (int part = 0; part < B; ++part) b[side][part][k] = parts[part];
      }
    }
  } else {
    uint32_t r[4];
    load_matrices<true>(r, rows + lane % 16 * pitch + lane / 16 * 16 + column * 2);
#pragma unroll
    for (int k = 0; k < 4; ++k) b[k / 2][0][k % 2] = r[k];
  }
}

// Scores of M times 16 queries with TILE negatives: adds the products of `columns` columns.
template <class T, int PARTS, int M, int TILE>
__device__ __forceinline__ void add_scores(float (&scores)[M][TILE / 8][4],
                                           const unsigned char* queries, int plane,
                                           const unsigned char* negatives, int pitch, int columns) {
  // Loads of the next columns beside products of these; parts leave too few registers for it.
  constexpr int kAtOnce = PARTS == 1 ? 2 : 1;
#pragma unroll kAtOnce
  for (int column = 0; column < columns; column += 16) {
    uint32_t a[M][PARTS][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      load_queries<T, PARTS>(a[m], queries + 16 * m * pitch, plane, pitch, column);
    }
#pragma unroll
    for (int pair = 0; pair < TILE / 16; ++pair) {
      uint32_t b[2][kNegativeParts<T>][2];
      load_negatives<T>(b, negatives + 16 * pair * pitch, pitch, column);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
          add_product<Half<T>>(scores[m][2 * pair + side], a[m], b[side]);
        }
      }
    }
  }
}

// An accumulator of the first product is laid out as the left operand of the second.
template <class T, int PARTS, int M, int TILE, int COLUMNS>
__device__ __forceinline__ void add_means(float (&means)[M][COLUMNS / 8][4],
                                          const float (&weights)[M][TILE / 8][4],
                                          const unsigned char* negatives, int pitch, int columns) {
#pragma unroll
  for (int pair = 0; pair < TILE / 16; ++pair) {
    uint32_t a[M][PARTS][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float (&w)[4] = weights[m][2 * pair + k / 2];
        uint32_t parts[PARTS];
        split<Half<T>>(w[k % 2 * 2], w[k % 2 * 2 + 1], parts);
#pragma unroll
        for (int part = 0; part < PARTS; ++part) a[m][part][k] = parts[part];
      }
    }
    const auto add_group = [&](int group) __attribute__((always_inline)) {
      uint32_t b[2][kNegativeParts<T>][2];
      load_columns<T>(b, negatives + 16 * pair * pitch, pitch, 16 * group);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
          add_product<Half<T>>(means[m][2 * group + side], a[m], b[side]);
        }
      }
    };
    // Without a branch between them, loads run ahead of products; parts leave too few registers.
    if (PARTS == 1 && columns == COLUMNS) {
#pragma unroll
      for (int group = 0; group < COLUMNS / 16; ++group) add_group(group);
    } else {
#pragma unroll
      for (int group = 0; group < COLUMNS / 16; ++group) {
        if (16 * group < columns) add_group(group);
      }
    }
  }
}

}  // namespace cuda
}  // namespace logo
