// Inner products between rows: which pairs, in which register tiles, and the tiles themselves.
#pragma once

#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// Rows of a register tile: 25 accumulators of the 32 (AVX-512) or 9 of the 16 registers, the rest
// for the factors.
constexpr int kDotRows = LOGO_VECTOR_BYTES == 64 ? 5 : 3;

// Which pairs of rows: rectangle a × b, triangle a ≥ b within one range, or squared norms alone.
enum class Shape { rectangle, triangle, diagonal };

struct Tile {
  Shape shape;
  int a, b;    // first rows
  int m, n;    // rows, ≤ kDotRows
  int offset;  // of its accumulators
};

constexpr int tile_size(const Tile& tile) { return (tile.m * tile.n + 3) / 4 * 4; }

// The tiles of a problem; the same for every image.
class DotPlan {
 public:
  // Tiles that a plan over `rows` rows can need, at the most.
  static int64_t capacity(int64_t rows) {
    const int64_t bands = rows / kDotRows + 4;  // + a remainder for each of four ranges
    return bands * (bands + 2);
  }
  explicit DotPlan(Tile* tiles) : tiles_(tiles) {}

  void triangle(int first, int count) {
    const Bands bands(count);
    for (int i = 0; i < bands.count; ++i) {
      for (int j = 0; j < i; ++j) {
        add(Shape::rectangle, first + bands.at(i), bands.size(i), first + bands.at(j),
            bands.size(j));
      }
      add(Shape::triangle, first + bands.at(i), bands.size(i), first + bands.at(i), bands.size(i));
    }
  }
  void rectangle(int a, int a_count, int b, int b_count) {
    const Bands of_a(a_count), of_b(b_count);
    for (int i = 0; i < of_a.count; ++i) {
      for (int j = 0; j < of_b.count; ++j) {
        add(Shape::rectangle, a + of_a.at(i), of_a.size(i), b + of_b.at(j), of_b.size(j));
      }
    }
  }
  void diagonal(int first, int count) {
    const Bands bands(count);
    for (int i = 0; i < bands.count; ++i) {
      add(Shape::diagonal, first + bands.at(i), bands.size(i), first + bands.at(i), 1);
    }
  }

  const Tile* begin() const { return tiles_; }
  const Tile* end() const { return tiles_ + count_; }
  int accumulators() const { return accumulators_; }

 private:
  // `rows` rows in as few bands of at most kDotRows as can be, of almost equal size.
  struct Bands {
    int rows, count;
    explicit Bands(int rows) : rows(rows), count((rows + kDotRows - 1) / kDotRows) {}
    int at(int band) const { return rows * band / count; }
    int size(int band) const { return at(band + 1) - at(band); }
  };

  void add(Shape shape, int a, int m, int b, int n) {
    tiles_[count_] = {shape, a, b, m, n, accumulators_};
    accumulators_ += tile_size(tiles_[count_++]);
  }

  Tile* tiles_;
  int count_ = 0;
  int accumulators_ = 0;
};

template <class T, Shape kShape, int M, int N>
void accumulate(const void* const* a, const void* const* b, int64_t count, Vector<T>* totals) {
  Vector<T> sums[M * N];
#pragma GCC unroll 25
  for (int k = 0; k < M * N; ++k) sums[k] = totals[k];
  for (int64_t d = 0; d < count; d += kLanes<T>) {
    Vector<T> left[M];
#pragma GCC unroll 5
    for (int i = 0; i < M; ++i) left[i] = in_register(load(static_cast<const T*>(a[i]) + d));
    if constexpr (kShape == Shape::diagonal) {
#pragma GCC unroll 5
      for (int i = 0; i < M; ++i) sums[i] += left[i] * left[i];
    } else {
#pragma GCC unroll 5
      for (int j = 0; j < N; ++j) {
        const Vector<T> right = kShape == Shape::triangle
                                    ? left[j]
                                    : in_register(load(static_cast<const T*>(b[j]) + d));
#pragma GCC unroll 5
        for (int i = 0; i < M; ++i) {
          if (kShape == Shape::rectangle || i >= j) sums[i * N + j] += left[i] * right;
        }
      }
    }
  }
#pragma GCC unroll 25
  for (int k = 0; k < M * N; ++k) totals[k] = sums[k];
}

template <class T, int M>
void accumulate_rows(const Tile& tile, const void* const* rows, int64_t count, Vector<T>* totals) {
  const void* const* a = rows + tile.a;
  const void* const* b = rows + tile.b;
  if (tile.shape == Shape::triangle) {
    return accumulate<T, Shape::triangle, M, M>(a, b, count, totals);
  }
  if (tile.shape == Shape::diagonal) {
    return accumulate<T, Shape::diagonal, M, 1>(a, b, count, totals);
  }
  switch (tile.n) {
    case 1: return accumulate<T, Shape::rectangle, M, 1>(a, b, count, totals);
    case 2: return accumulate<T, Shape::rectangle, M, 2>(a, b, count, totals);
    case 3: return accumulate<T, Shape::rectangle, M, 3>(a, b, count, totals);
    case 4: return accumulate<T, Shape::rectangle, M, 4>(a, b, count, totals);
    default: return accumulate<T, Shape::rectangle, M, kDotRows>(a, b, count, totals);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace logo
