// A softmax whose logits come a tile at a time: weights in powers of two of a row's own exponent.
#pragma once

#include <cmath>

#include "cpu/exp2.h"
#include "logo/running_maximum.h"

namespace logo {
namespace cpu {
namespace {

// Columns first .. last of a row that do not count.
struct Hidden {
  int64_t first, last;
  bool any() const { return first < last; }
};

// One row's softmax so far. Its weights, their sum, and sums of their products are those of the
// softmax over 2^exponent.
template <class T>
struct SoftmaxRow {
  T exponent;
  double sum;
};

template <class T>
class Softmax {
 public:
  // Logits are cosines / temperature.
  explicit Softmax(double temperature) : scale_(kLog2E / temperature) {
    running_ = needs_running_maximum<T>(temperature);
    first_ = running_ ? -T(__builtin_inf()) : T(ceil(kLog2E / temperature));
  }

  SoftmaxRow<T> start() const { return {first_, 0}; }

  // Cosines become weights. Returns the factor that brings earlier weights, and sums of them, to
  // the new exponent: a power of two, mostly one. `count` is a multiple of kLanes.
  T weigh(SoftmaxRow<T>& row, T* cosines, int64_t count, const Hidden (&hidden)[2]) const {
    const bool partial = hidden[0].any() || hidden[1].any();
    T before = 1;
    if (partial) fill(cosines, hidden, T(-2));  // less than any cosine
    if (running_) before = raise(row, cosines, count);
    Vector<T> sum{};
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      const Vector<T> weights = exp2_less<T>(load(cosines + k), scale_, row.exponent);
      *reinterpret_cast<Vector<T>*>(cosines + k) = weights;
      sum += weights;
    }
    if (partial) {
      fill(cosines, hidden, T(0));
      sum = Vector<T>{};
      for (int64_t k = 0; k < count; k += kLanes<T>) sum += load(cosines + k);
    }
    T total = 0;
    for (int lane = 0; lane < kLanes<T>; ++lane) total += sum[lane];
    row.sum = row.sum * double(before) + double(total);
    return before;
  }

  static constexpr double kLn2 = 0.693147180559945309417;

 private:
  static void fill(T* row, const Hidden (&hidden)[2], T value) {
    for (const Hidden& range : hidden) {
      for (int64_t k = range.first; k < range.last; ++k) row[k] = value;
    }
  }

  T raise(SoftmaxRow<T>& row, const T* cosines, int64_t count) const {
    Vector<T> most = Vector<T>{} - 2;
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      const Vector<T> value = load(cosines + k);
      most = value > most ? value : most;  // never NaN
    }
    T largest = -2;
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      if (most[lane] > largest) largest = most[lane];
    }
    const T wanted = T(ceil(double(largest) * double(scale_.first)));
    if (wanted <= row.exponent) return 1;
    const T before = T(exp2(double(row.exponent) - double(wanted)));
    row.exponent = wanted;
    return before;
  }

  Scale<T> scale_;  // log2(e) / temperature
  T first_;         // exponent
  bool running_;
};

}  // namespace
}  // namespace cpu
}  // namespace logo
