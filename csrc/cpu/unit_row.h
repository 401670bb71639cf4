// One row at a time, of any layout, dtype and finite norm, as a unit vector.
#pragma once

#include <cmath>

#include "cpu/memory.h"
#include "cpu/simd.h"
#include "logo/dtypes.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

// Σ lanes, in chains that do not wait for one another.
template <class T>
inline double sum_lanes(Vector<T> values) {
  double sums[4] = {};
  for (int lane = 0; lane < kLanes<T>; ++lane) sums[lane % 4] += double(values[lane]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
class UnitRow {
 public:
  // `padded`: D and the zeros behind it, whole vectors.
  UnitRow(int64_t dim, int64_t padded) : dim_(dim), padded_(padded) {}

  size_t bytes() const { return Scratch::bytes<T>(padded_); }
  void attach(Scratch& scratch) {
    row_ = scratch.take<T>(padded_);
    memset(row_, 0, size_t(padded_) * sizeof(T));
  }

  void read(const Rows& rows, int64_t image, int64_t crop) {
    const char* const from = row_address(rows, image, crop);
    const int64_t stride = rows.element_stride;
    switch (rows.dtype) {
      case DType::f32: copy(reinterpret_cast<const float*>(from), stride); break;
      case DType::f64: copy(reinterpret_cast<const double*>(from), stride); break;
      case DType::bf16: copy(reinterpret_cast<const bf16*>(from), stride); break;
      case DType::f16: copy(reinterpret_cast<const f16*>(from), stride); break;
    }
    normalise();
    // In two factors: the error of one would move all cosines of the row, and their logits.
    factor_ = T(inverse_);
    rest_ = T(inverse_ - double(factor_));
  }

  // Columns d … d + kLanes of the unit vector; zeros if the row is zero.
  Vector<T> unit(int64_t d) const {
    const Vector<T> value = load(row_ + d);
    return value * factor_ + value * rest_;
  }
  void write(T* to) const {
    for (int64_t d = 0; d < padded_; d += kLanes<T>)
      *reinterpret_cast<Vector<T>*>(to + d) = unit(d);
  }

  // The norm is divisor() / inverse(), which itself may not be representable.
  double inverse() const { return inverse_; }
  T divisor() const { return divisor_; }
  bool zero() const { return zero_; }

 private:
  template <class S>
  void copy(const S* from, int64_t stride) {
    int64_t d = 0;
    if constexpr (sizeof(T) == 4 && sizeof(S) < 8) {
      if (stride == 1) {
        for (; d + kLanes<T> <= dim_; d += kLanes<T>) {
          *reinterpret_cast<Vector<T>*>(row_ + d) = load_as_float(from + d);
        }
      }
    }
    for (; d < dim_; ++d) row_[d] = T(to_double(from[d * stride]));
  }

  double squared_norm() const {
    constexpr int kSums = 4;
    Vector<T> sums[kSums] = {};
    int64_t d = 0;
    for (; d + kSums * kLanes<T> <= padded_; d += kSums * kLanes<T>) {
      for (int j = 0; j < kSums; ++j) {
        const Vector<T> value = load(row_ + d + j * kLanes<T>);
        sums[j] += value * value;
      }
    }
    for (; d < padded_; d += kLanes<T>) {
      const Vector<T> value = load(row_ + d);
      sums[0] += value * value;
    }
    return sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  // Where its square would over- or underflow, the row is divided by its largest magnitude first; a
  // row with inf or NaN becomes NaN.
  void normalise() {
    zero_ = false;
    divisor_ = 1;
    const double squared = squared_norm();
    if (squares_well(T(squared))) {
      inverse_ = 1 / sqrt(squared);
      return;
    }
    T largest = 0;
    for (int64_t d = 0; d < dim_; ++d) {
      const T magnitude = row_[d] < 0 ? -row_[d] : row_[d];
      if (magnitude > largest) largest = magnitude;
    }
    if (largest == 0) {
      zero_ = squared == 0;
      inverse_ = zero_ ? 1 : squared;  // else NaN
      return;
    }
    for (int64_t d = 0; d < dim_; ++d) row_[d] /= largest;
    divisor_ = largest;
    inverse_ = 1 / sqrt(squared_norm());
  }

  const int64_t dim_, padded_;
  T* row_ = nullptr;  // as read, over divisor_
  double inverse_ = 1;
  T factor_ = 1, rest_ = 0, divisor_ = 1;
  bool zero_ = false;
};

// Σ a b over whole vectors.
template <class T>
inline double inner_product(const T* a, const T* b, int64_t padded) {
  Vector<T> even{}, odd{};
  int64_t d = 0;
  for (; d + 2 * kLanes<T> <= padded; d += 2 * kLanes<T>) {
    even += load(a + d) * load(b + d);
    odd += load(a + d + kLanes<T>) * load(b + d + kLanes<T>);
  }
  if (d < padded) even += load(a + d) * load(b + d);
  return sum_lanes<T>(even + odd);
}

}  // namespace
}  // namespace cpu
}  // namespace logo
