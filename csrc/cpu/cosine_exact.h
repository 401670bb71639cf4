// The cosine loss of one image and its gradient, pair by pair in scaled fp64 (exact.h).
#pragma once

#include "cpu/cosine_layout.h"
#include "cpu/exact.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

class ExactCosine {
 public:
  explicit ExactCosine(const Layout& layout) : at_(layout), image_(layout.p.dim, layout.rows) {}

  // Nothing is reserved before the first image that needs it. False when memory is short.
  bool run(int64_t image, double* per_image) {
    if (!ready_ && !reserve()) return false;
    ready_ = true;
    image_.clear();
    at_.add_rows(image_, image);
    image_.find_dots();
    for (int row = 0; row < at_.rows; ++row) {
      const double squared = image_.squared_norm(row);
      inverse_[row] = squared == 0 ? 0 : 1 / sqrt(squared);
    }
    float* const scale = at_.row_scale(image);
    const auto scales = [scale](int i) { return scale == nullptr ? nullptr : scale + i; };
    double gg = 0, lg = 0, ll = 0;
    for (int i = 0; i < at_.globals; ++i) {
      own_ = 0;
      gg += pair_up(at_.x + i, at_.t, at_.globals, i, at_.gg_weight, weights_);
      write(at_.p.grad_global, at_.x + i, at_.t, at_.globals, at_.x_weights(), scales(i), image, i);
    }
    for (int i = 0; i < at_.locals; ++i) {
      own_ = 0;
      lg += pair_up(at_.y + i, at_.t, at_.globals, -1, at_.lg_weight, weights_);
      int partners = at_.globals;
      if (at_.y_repelled()) {  // y follows t
        ll += pair_up(at_.y + i, at_.y, at_.locals, i, at_.ll_weight, weights_ + partners);
        partners += at_.locals;
      }
      write(at_.p.grad_local, at_.y + i, at_.t, partners, at_.y_weights(), scales(at_.globals + i),
            image, i);
    }
    for (int i = 0; i < at_.locals && !at_.own_features; ++i) {
      own_ = 0;
      if (at_.repulsion) ll += pair_up(at_.r + i, at_.r, at_.locals, i, at_.ll_weight, weights_);
      write(at_.p.grad_features, at_.r + i, at_.r, at_.repulsion ? at_.locals : 0, at_.r_weights(),
            scales(at_.globals + at_.locals + i), image, i);
    }
    at_.write_terms(image, gg, lg, ll, per_image);
    return true;
  }

 private:
  bool reserve() {
    if (!image_.reserve()) return false;
    if (!scratch_.reserve(2 * Scratch::bytes<double>(at_.rows))) return false;
    inverse_ = scratch_.take<double>(at_.rows);
    weights_ = scratch_.take<double>(at_.rows);
    return true;
  }

  double pair_up(int row, int first, int count, int skip, double weight, double* weights) {
    return cosine_row(
        image_.dots(row) + first, count, skip, inverse_[row], inverse_ + first,
        [weight](int) { return weight; }, weights, &own_);
  }

  void write(const Rows& gradient, int row, int first, int partners, double bound, float* scale,
             int64_t image, int crop) {
    if (!gradient.present()) return;
    int shift = image_.exponent(row);
    double limit = largest(gradient.dtype);
    if (scale != nullptr) *scale = 1;
    if (gradient.dtype == DType::f16) {
      const int exponent = fp16_exponent(ldexp(bound * inverse_[row], shift));
      *scale = float(ldexp(1.0, exponent));
      shift -= exponent;
      if (exponent > 0) limit = ldexp(limit, -exponent);
    }
    image_.sum(weights_, first, partners, own_, row, shift, limit, gradient, image, crop);
  }

  const Layout& at_;
  bool ready_ = false;
  Scratch scratch_;
  ExactImage image_;
  double own_ = 0;
  double* inverse_ = nullptr;  // [rows] of the scaled rows
  double* weights_ = nullptr;  // [rows] coefficients of a row's partners
};

}  // namespace
}  // namespace cpu
}  // namespace logo
