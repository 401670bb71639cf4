// One image in fp64 with every row scaled by a power of two: right for any finite norm.
//
// The fast path (image.h) squares rows as they are. It hands over the few images in which a norm
// leaves the range that squares allow. Mixtures of fp64 constants with narrower crops come here
// too.
//
// cos(2^a x, 2^b y) = cos(x, y), so scaling changes neither cosines nor coefficients; the gradient
// of a row is 2^a times the scaled row's.
#pragma once

#include <cmath>

#include "cpu/image.h"

namespace logo {
namespace cpu {
namespace {

class ExactImage {
 public:
  ExactImage(int64_t dim, int rows) : dim_(dim), rows_(rows) {}

  bool reserve() {
    const size_t bytes = Scratch::bytes<double>(rows_ * dim_) + Scratch::bytes<double>(dim_) +
                         Scratch::bytes<double>(rows_ * rows_) + Scratch::bytes<int>(rows_);
    if (!scratch_.reserve(bytes)) return false;
    scaled_ = scratch_.take<double>(rows_ * dim_);
    sum_ = scratch_.take<double>(dim_);
    dots_ = scratch_.take<double>(rows_ * rows_);
    exponent_ = scratch_.take<int>(rows_);
    return true;
  }

  void clear() { count_ = 0; }
  void add(const Rows& rows, int64_t image) {
    for (int64_t crop = 0; crop < rows.count; ++crop, ++count_) {
      const char* const from = row_address(rows, image, crop);
      double* const to = scaled_ + count_ * dim_;
      switch (rows.dtype) {
        case DType::f32: read(reinterpret_cast<const float*>(from), rows.element_stride, to); break;
        case DType::f64:
          read(reinterpret_cast<const double*>(from), rows.element_stride, to);
          break;
        case DType::bf16: read(reinterpret_cast<const bf16*>(from), rows.element_stride, to); break;
        case DType::f16: read(reinterpret_cast<const f16*>(from), rows.element_stride, to); break;
      }
    }
  }

  void find_dots() {
    for (int i = 0; i < rows_; ++i) {
      for (int j = 0; j <= i; ++j) {
        const double* const a = scaled_ + i * dim_;
        const double* const b = scaled_ + j * dim_;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < dim_; ++d) sum += a[d] * b[d];
        dots_[i * rows_ + j] = dots_[j * rows_ + i] = sum;
      }
    }
  }
  const double* dots(int row) const { return dots_ + row * rows_; }
  double squared_norm(int row) const { return dots_[row * rows_ + row]; }
  int exponent(int row) const { return exponent_[row]; }

  // Writes a row of a gradient, 2^shift (Σ_k weights[k] row_{first + k} + own row_{own_row}), with
  // no magnitude above `limit`.
  void sum(const double* weights, int first, int count, double own, int own_row, int shift,
           double limit, const Rows& gradient, int64_t image, int64_t crop) {
    const double* const own_values = scaled_ + own_row * dim_;
    for (int64_t d = 0; d < dim_; ++d) sum_[d] = own == 0 ? 0 : own * own_values[d];
    for (int k = 0; k < count; ++k) {
      const double weight = weights[k];
      const double* const values = scaled_ + (first + k) * dim_;
      if (weight == 0) continue;  // 0 · inf would turn a partner that does not count into NaN
      for (int64_t d = 0; d < dim_; ++d) sum_[d] += weight * values[d];
    }
    char* const to = const_cast<char*>(row_address(gradient, image, crop));
    for (int64_t d = 0; d < dim_; ++d) {
      double value = ldexp(sum_[d], shift);
      value = value > limit ? limit : value < -limit ? -limit : value;  // NaN stays
      switch (gradient.dtype) {
        case DType::f32: reinterpret_cast<float*>(to)[d] = float(value); break;
        case DType::f64: reinterpret_cast<double*>(to)[d] = value; break;
        case DType::bf16: from_float(float(value), reinterpret_cast<bf16*>(to) + d); break;
        case DType::f16: from_float(float(value), reinterpret_cast<f16*>(to) + d); break;
      }
    }
  }

 private:
  template <class Source>
  void read(const Source* from, int64_t stride, double* to) {
    double most = 0;
    for (int64_t d = 0; d < dim_; ++d) {
      to[d] = to_double(from[d * stride]);
      const double magnitude = fabs(to[d]);
      if (magnitude > most) most = magnitude;
    }
    int exponent = 0;
    if (most > 0 && most <= 1.7976931348623157e308) frexp(most, &exponent);
    exponent_[count_] = -exponent;
    // In two factors, since 2^1074, the scale of the tiniest row, is no double.
    const double half = ldexp(1.0, -exponent / 2), rest = ldexp(1.0, -exponent - -exponent / 2);
    for (int64_t d = 0; d < dim_; ++d) to[d] = to[d] * half * rest;
  }

  int64_t dim_;
  int rows_, count_ = 0;
  Scratch scratch_;
  double* scaled_ = nullptr;  // [rows, dim]
  double* sum_ = nullptr;     // [dim]
  double* dots_ = nullptr;    // [rows, rows]
  int* exponent_ = nullptr;   // [rows] scaled row = 2^exponent row
};

}  // namespace
}  // namespace cpu
}  // namespace logo
