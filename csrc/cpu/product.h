// Products of a block of rows with a panel of columns, as outer products in registers.
#pragma once

#include "cpu/bf16_pairs.h"
#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// Rows and vectors of a register tile: 24 accumulators of the 32 registers (AVX-512) or 12 of the
// 16, the rest for the factors.
constexpr int kBandRows = 6;
constexpr int kPanelVectors = LOGO_VECTOR_BYTES == 64 ? 4 : 2;
// Columns of a panel. A matrix [depth, width] is kept as panels [depth, kPanel], one after another.
template <class T>
constexpr int64_t kPanel = kPanelVectors * kLanes<T>;
// Terms of an inner product that are summed at once. The sums of so many are added up in memory,
// which loses fewer digits than one long sum; InfoNCE took 6 % longer with sums of 32. Less where
// products are rounded too.
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
constexpr int64_t kTerms = 128;
#else
constexpr int64_t kTerms = 16;
#endif

// The factors of a product: numbers of type T, or, in place of each, a pair of bf16.
enum class Factors { numbers, pairs };

// out [rows, columns] (+)= a [rows, depth] · panel [depth, columns], columns ≤ kPanel.
template <class T>
struct Product {
  const T* a;
  int64_t a_stride;
  const T* panel;
  int64_t depth;
  T* out;
  int64_t out_stride;
  bool add;
};

template <class T, Factors kFactors, int M, int N>
void multiply_band(const Product<T>& p, int64_t row) {
  constexpr int kLane = kLanes<T>;
  const T* a[M];
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i) a[i] = p.a + (row + i) * p.a_stride;
  Vector<T> sums[M][N];
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sums[i][j] = Vector<T>{};
  }
  const T* panel = p.panel;
  for (int64_t k = 0; k < p.depth; ++k, panel += kPanel<T>) {
    Vector<T> b[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) b[j] = in_register(load(panel + j * kLane));
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
      if constexpr (kFactors == Factors::numbers) {
        const Vector<T> factor = in_register(a[i][k] - Vector<T>{});  // x − 0 is x, of any sign
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) sums[i][j] += factor * b[j];
      } else {
        const Vector<T> factor = in_register(broadcast_bits(a[i] + k));
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) add_pairs(sums[i][j], factor, b[j]);
      }
    }
  }
  T* const first = p.out + row * p.out_stride;
  const int64_t stride = p.out_stride;
  if (p.add) {
#pragma GCC unroll 6
    for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sums[i][j] += load(first + i * stride + j * kLane);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      *reinterpret_cast<Vector<T>*>(first + i * stride + j * kLane) = sums[i][j];
    }
  }
}

template <class T, Factors kFactors, int N>
void multiply_rows(const Product<T>& p, int64_t rows) {
  const int64_t bands = (rows + kBandRows - 1) / kBandRows;
  for (int64_t band = 0; band < bands; ++band) {  // of almost equal sizes
    const int64_t first = rows * band / bands;
    switch (rows * (band + 1) / bands - first) {
      case 1: multiply_band<T, kFactors, 1, N>(p, first); break;
      case 2: multiply_band<T, kFactors, 2, N>(p, first); break;
      case 3: multiply_band<T, kFactors, 3, N>(p, first); break;
      case 4: multiply_band<T, kFactors, 4, N>(p, first); break;
      case 5: multiply_band<T, kFactors, 5, N>(p, first); break;
      default: multiply_band<T, kFactors, kBandRows, N>(p, first);
    }
  }
}

// `columns` of the panel are wanted; more may be written, up to a whole vector.
template <class T, Factors kFactors = Factors::numbers>
void multiply(const Product<T>& p, int64_t rows, int64_t columns) {
  const int64_t vectors = (columns + kLanes<T> - 1) / kLanes<T>;
  if constexpr (kPanelVectors == 4) {
    if (vectors == 3) return multiply_rows<T, kFactors, 3>(p, rows);
    if (vectors > 3) return multiply_rows<T, kFactors, 4>(p, rows);
  }
  if (vectors == 1) return multiply_rows<T, kFactors, 1>(p, rows);
  multiply_rows<T, kFactors, 2>(p, rows);
}

}  // namespace
}  // namespace cpu
}  // namespace logo
