// A tile of negatives as unit rows, packed for both products of the pass over them.
#pragma once

#include <cmath>

#include "cpu/memory.h"
#include "cpu/product.h"
#include "cpu/transpose.h"
#include "logo/dtypes.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

template <class T>
class UnitTile {
 public:
  // Tiles of at most `rows` rows, a multiple of kPanel.
  UnitTile(const Rows& from, int64_t dim, int64_t rows)
      : from_(from), dim_(dim), padded_(round_up(dim)), rows_(rows) {}

  static int64_t round_up(int64_t count) { return (count + kPanel<T> - 1) / kPanel<T> * kPanel<T>; }

  bool reserve() {
    const int64_t size = rows_ * padded_;
    if (!scratch_.reserve(2 * Scratch::bytes<T>(size) + Scratch::bytes<T>(padded_))) return false;
    by_row_ = scratch_.take<T>(size);
    by_column_ = scratch_.take<T>(size);
    row_ = scratch_.take<T>(padded_);
    memset(by_row_, 0, size_t(size) * sizeof(T));  // columns beyond D, and rows beyond the last
    memset(row_, 0, size_t(padded_) * sizeof(T));
    return true;
  }

  // Rows first .. first + count.
  void pack(int64_t first, int64_t count) {
    for (int64_t row = 0; row < count; ++row) {
      read(first + row);
      const double inverse = normalise();
      // In two factors: the error of one would move all cosines of the row, and their logits.
      const T factor = T(inverse), rest = T(inverse - double(factor));
      for (int64_t d = 0; d < padded_; d += kPanel<T>) {
        T* const to = by_row_ + d * rows_ + row * kPanel<T>;
        for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>) {
          *reinterpret_cast<Vector<T>*>(to + j) = unit(load(row_ + d + j), factor, rest);
        }
      }
    }
    transpose(count);
  }

  // As pairs of columns and pairs of rows: half as deep.
  void pair(int64_t count) {
    for (int64_t d = 0; d < padded_; d += kPanel<T>) {
      pair_rows(by_row_ + d * rows_, count, kPanel<T>);
    }
    for (int64_t row = 0; row < count; row += kPanel<T>) {
      pair_rows(by_column_ + row * padded_, dim_, kPanel<T>);
    }
  }

  // [tile, D] in panels of columns d .. d + kPanel, and its transpose in panels of rows.
  const T* columns(int64_t d) const { return by_row_ + d * rows_; }
  const T* rows(int64_t row) const { return by_column_ + row * padded_; }

 private:
  static Vector<T> unit(Vector<T> value, T factor, T rest) { return value * factor + value * rest; }

  template <class S>
  void copy(const S* from) {
    if (sizeof(T) == 4 && sizeof(S) < 8 && from_.element_stride == 1) {
      int64_t d = 0;
      if constexpr (sizeof(T) == 4 && sizeof(S) < 8) {
        for (; d + kLanes<T> <= dim_; d += kLanes<T>) {
          *reinterpret_cast<Vector<T>*>(row_ + d) = load_as_float(from + d);
        }
      }
      for (; d < dim_; ++d) row_[d] = T(to_double(from[d]));
      return;
    }
    for (int64_t d = 0; d < dim_; ++d) row_[d] = T(to_double(from[d * from_.element_stride]));
  }
  void read(int64_t row) {
    const char* const from = row_address(from_, 0, row);
    switch (from_.dtype) {
      case DType::f32: return copy(reinterpret_cast<const float*>(from));
      case DType::f64: return copy(reinterpret_cast<const double*>(from));
      case DType::bf16: return copy(reinterpret_cast<const bf16*>(from));
      case DType::f16: return copy(reinterpret_cast<const f16*>(from));
    }
  }

  double squared_norm() const {
    Vector<T> sums[kPanelVectors] = {};
    for (int64_t d = 0; d < padded_; d += kPanel<T>) {
      for (int j = 0; j < kPanelVectors; ++j) {
        const Vector<T> value = load(row_ + d + j * kLanes<T>);
        sums[j] += value * value;
      }
    }
    double sum = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      for (int j = 0; j < kPanelVectors; ++j) sum += double(sums[j][lane]);
    }
    return sum;
  }

  // What row_ is to be multiplied by. Where its square would over- or underflow, row_ is divided by
  // its largest magnitude first; a row with inf or NaN becomes NaN.
  double normalise() {
    const double squared = squared_norm();
    if (squares_well(T(squared))) return 1 / sqrt(squared);
    T largest = 0;
    for (int64_t d = 0; d < dim_; ++d) {
      const T magnitude = row_[d] < 0 ? -row_[d] : row_[d];
      if (magnitude > largest) largest = magnitude;
    }
    if (largest == 0) return squared == 0 ? 1 : squared;  // zeros, or NaN
    for (int64_t d = 0; d < dim_; ++d) row_[d] /= largest;
    return 1 / sqrt(squared_norm());
  }

  void transpose(int64_t count) {
    for (int64_t row = 0; row < count; row += kLanes<T>) {
      T* const panel = by_column_ + row / kPanel<T> * kPanel<T> * padded_ + row % kPanel<T>;
      for (int64_t d = 0; d < dim_; d += kLanes<T>) {
        const T* const from =
            by_row_ + d / kPanel<T> * kPanel<T> * rows_ + d % kPanel<T> + row * kPanel<T>;
        transpose_block(from, kPanel<T>, panel + d * kPanel<T>, kPanel<T>);
      }
    }
  }

  const Rows& from_;
  const int64_t dim_, padded_, rows_;
  Scratch scratch_;
  T* by_row_ = nullptr;     // [padded D / kPanel, rows, kPanel]
  T* by_column_ = nullptr;  // [rows / kPanel, padded D, kPanel]
  T* row_ = nullptr;        // [padded D] as read
};

}  // namespace
}  // namespace cpu
}  // namespace logo
