// A tile of negatives as unit rows, packed for both products of the pass over them.
#pragma once

#include "cpu/memory.h"
#include "cpu/product.h"
#include "cpu/transpose.h"
#include "cpu/unit_row.h"

namespace logo {
namespace cpu {
namespace {

template <class T>
class UnitTile {
 public:
  // Tiles of at most `rows` rows, a multiple of kPanel.
  UnitTile(const Rows& from, int64_t dim, int64_t rows)
      : from_(from), dim_(dim), padded_(round_up(dim)), rows_(rows), row_(dim, padded_) {}

  static int64_t round_up(int64_t count) { return (count + kPanel<T> - 1) / kPanel<T> * kPanel<T>; }

  bool reserve() {
    const int64_t size = rows_ * padded_;
    if (!scratch_.reserve(2 * Scratch::bytes<T>(size) + row_.bytes())) return false;
    by_row_ = scratch_.take<T>(size);
    by_column_ = scratch_.take<T>(size);
    row_.attach(scratch_);
    memset(by_row_, 0, size_t(size) * sizeof(T));  // columns beyond D, and rows beyond the last
    return true;
  }

  // Rows first .. first + count, one image after the other.
  void pack(int64_t first, int64_t count) {
    int64_t image = first / from_.count, crop = first - image * from_.count;
    for (int64_t row = 0; row < count; ++row) {
      row_.read(from_, image, crop);
      for (int64_t d = 0; d < padded_; d += kPanel<T>) {
        T* const to = by_row_ + d * rows_ + row * kPanel<T>;
        for (int64_t j = 0; j < kPanel<T>; j += kLanes<T>) {
          *reinterpret_cast<Vector<T>*>(to + j) = row_.unit(d + j);
        }
      }
      if (++crop == from_.count) {
        crop = 0;
        ++image;
      }
    }
    transpose(count);
  }

  // Turns the tile into pairs of columns and pairs of rows: half as deep.
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
  UnitRow<T> row_;
};

}  // namespace
}  // namespace cpu
}  // namespace logo
