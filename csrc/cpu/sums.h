// Sums of rows with small weights, written as a gradient.
#pragma once

#include <initializer_list>

#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// Rows that are summed together: 16 accumulators of the 32 (AVX-512) or 8 of the 16 registers.
constexpr int kSumRows = LOGO_VECTOR_BYTES == 64 ? 8 : 4;
// Sums are formed over strips of two vectors, which hide the latency of the multiply-add.
template <class T>
constexpr int kStrip = 2 * kLanes<T>;

// Lines of the next image to fetch while this one computes: reads overlap the writes.
struct Prefetch {
  const char* const* rows = nullptr;
  int count = 0;
  int64_t element_bytes = 0;

  inline void strip(int64_t element, int elements) const {
    for (int row = 0; row < count; ++row) {
      const char* const from = rows[row] + element * element_bytes;
      for (int64_t byte = 0; byte < elements * element_bytes; byte += 64) {
        __builtin_prefetch(from + byte, 0, 2);
      }
    }
  }
};

template <class V, class T>
inline V clamp(V value, T limit) {  // NaN stays
  const V most = V{} + limit;
  value = value > most ? most : value;
  return value < -most ? -most : value;
}

// Rows that enter one sum each, with a coefficient: rows[i] enters sum i. null: none.
template <class T>
struct Single {
  const void* const* rows = nullptr;
  const T* coefficients = nullptr;
};

// out_i = Σ_k weights[k][i] source_k + own_i x_i + other_i z_i for M sums i and `count` elements.
// Sources have the compute type T, x_i and z_i the dtype Row. All addresses are those of the first
// element; `first` is its place in the row, for the prefetch.
template <class T, int M, class Row, class To>
void sum_rows(const void* const* sources, int source_count, const T* weights, Single<T> own,
              Single<T> other, To* const* out, int64_t count, int64_t first, bool streaming,
              const T* limits, const Prefetch& prefetch) {
  constexpr int kLane = kLanes<T>;
  for (int64_t d = 0; d < count; d += kStrip<T>) {
    Vector<T> low[M], high[M];
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) low[i] = high[i] = Vector<T>{};
    for (int k = 0; k < source_count; ++k) {
      const T* const source = static_cast<const T*>(sources[k]) + d;
      const Vector<T> source_low = load(source);
      const Vector<T> source_high = load(source + kLane);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        low[i] += source_low * weights[k * M + i];
        high[i] += source_high * weights[k * M + i];
      }
    }
    for (const Single<T>& single : {own, other}) {
      if (single.rows == nullptr) continue;
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const Row* const row = static_cast<const Row*>(single.rows[i]) + d;
        low[i] += load_as<T>(row) * single.coefficients[i];
        high[i] += load_as<T>(row + kLane) * single.coefficients[i];
      }
    }
    prefetch.strip(first + d, kStrip<T>);
    const int64_t left = count - d;
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      if (limits != nullptr) {
        low[i] = clamp(low[i], limits[i]);
        high[i] = clamp(high[i], limits[i]);
      }
      if (left >= kStrip<T>) {
        store2(low[i], high[i], out[i] + d, streaming);
      } else {
        To strip[kStrip<T>];
        store2(low[i], high[i], strip, false);
        memcpy(out[i] + d, strip, size_t(left) * sizeof(To));
      }
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace logo
