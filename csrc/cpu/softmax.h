// A softmax whose logits, cosines over a temperature, come a tile at a time.
//
// Where a maximum is needed, cosines are subtracted before they are divided by the temperature: a
// quotient may be no number, and its last digit more than one.
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

// One row's softmax so far. A weight is e^{(cosine − most)/τ}, over 2^offset if no maximum is
// needed: then `most` is zero.
template <class T>
struct SoftmaxRow {
  T most;
  double sum;
};

// A log-sum-exp: most/τ + rest.
struct LogSum {
  double most, rest;
};

template <class T>
class Softmax {
 public:
  explicit Softmax(double temperature)
      : steepness_(steepness(temperature)),
        running_(needs_running_maximum<T>(temperature)),
        offset_(running_ ? T(0) : T(ceil(steepness_))),
        scale_(steepness_),
        reach_(T(kReach / steepness_)) {}

  SoftmaxRow<T> start() const { return {running_ ? -T(__builtin_inf()) : T(0), 0}; }

  // The factor that brings weights relative to one maximum to another.
  double change(T from, T to) const {
    return from == to ? 1 : exp2((double(from) - double(to)) * steepness_);
  }
  LogSum log_sum(T most, double sum) const {
    return {double(most), double(offset_) * kLn2 + log(sum)};
  }

  // Cosines become weights. Returns the factor that brings earlier weights, and sums of them, to
  // the new maximum: mostly one. `count` is a multiple of kLanes.
  T weigh(SoftmaxRow<T>& row, T* cosines, int64_t count, const Hidden (&hidden)[2]) const {
    const bool partial = hidden[0].any() || hidden[1].any();
    T before = 1;
    if (partial) fill(cosines, hidden, T(-2));  // less than any cosine
    if (running_) before = raise(row, cosines, count);
    Vector<T> sum = running_ ? replace<true>(cosines, count, row.most)
                             : replace<false>(cosines, count, row.most);
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

 private:
  static constexpr double kLn2 = 0.693147180559945309417;
  // Exponents so far below the largest are zeros among weights, and further ones are not formed.
  static constexpr double kReach = sizeof(T) == 4 ? 200 : 1200;

  // log2(e)/τ, as far as it is a number that has an inverse. Cosines that would tell a greater one
  // apart differ by less than their own errors.
  static double steepness(double temperature) {
    constexpr double most = sizeof(T) == 4 ? 0x1p100 : 0x1p900;
    const double found = kLog2E / temperature;
    return found > most ? most : found;  // NaN stays
  }

  // Writes weights in the place of cosines, and returns their sum.
  template <bool kRunning>
  Vector<T> replace(T* cosines, int64_t count, T most) const {
    Vector<T> sum{};
    for (int64_t k = 0; k < count; k += kLanes<T>) {
      Vector<T> cosine = load(cosines + k);
      if (kRunning) {
        cosine -= most;
        cosine = cosine < -reach_ ? Vector<T>{} - reach_ : cosine;  // NaN stays
      }
      const Vector<T> weights = exp2_less<T>(cosine, scale_, offset_);
      *reinterpret_cast<Vector<T>*>(cosines + k) = weights;
      sum += weights;
    }
    return sum;
  }

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
    if (largest <= row.most) return 1;
    const T before = T(change(row.most, largest));
    row.most = largest;
    return before;
  }

  const double steepness_;  // log2(e)/τ
  const bool running_;
  const T offset_;
  const Scale<T> scale_;
  const T reach_;  // the distance of cosines that kReach is
};

}  // namespace
}  // namespace cpu
}  // namespace logo
