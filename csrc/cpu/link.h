// Softplus and its derivative, a vector at once: exact for any f, NaN stays NaN.
#pragma once

#include "cpu/exp2.h"
#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

template <class T>
struct Linked {
  Vector<T> value, slope;
};

// e^x for x ≤ 0.
template <class T>
inline Vector<T> exp_negative(Vector<T> x) {
  // ln 2 in two parts: a whole number below 2^11 times the first is exact.
  constexpr T kHigh = sizeof(T) == 4 ? 0.693359375 : 0.693147180369123816490,
              kLow = sizeof(T) == 4 ? -2.12194440054690582e-4 : 1.90821492927058770002e-10,
              kLog2E = 1.44269504088896340736;
  constexpr T kLeast = sizeof(T) == 4 ? -200 : -1000;  // e^kLeast is 0, as that of −∞
  x = x < kLeast ? Vector<T>{} + kLeast : x;
  const Vector<T> whole = (x * kLog2E + Exp2<T>::kRound) - Exp2<T>::kRound;
  const Vector<T> fraction = ((x - whole * kHigh) - whole * kLow) * kLog2E;
  Vector<T> value = Vector<T>{} + Exp2<T>::kSeries[Exp2<T>::kTerms - 1];
#pragma GCC unroll 12
  for (int k = Exp2<T>::kTerms - 2; k >= 0; --k) value = value * fraction + Exp2<T>::kSeries[k];
  return times_power<T>(value, whole);
}

template <class T>
inline Linked<T> link(Link kind, Vector<T> f) {
  if (kind == Link::identity) return {f, Vector<T>{} + T(1)};
  const bool negated = kind == Link::softplus_negated;
  if (negated) f = -f;
  const Vector<T> small = exp_negative<T>(f > 0 ? -f : f);

  // log(1 + u) = 2 artanh(s), s = u / (2 + u) ≤ 1/3: terms fall ninefold.
  const Vector<T> s = small / (small + 2), squared = s * s;
  constexpr int kTerms = sizeof(T) == 4 ? 8 : 17;
  Vector<T> series{};
#pragma GCC unroll 17
  for (int k = kTerms - 1; k >= 0; --k) series = series * squared + T(2.0 / (2 * k + 1));
  const Vector<T> value = (f > 0 ? f : Vector<T>{}) + s * series;

  const Vector<T> slope = (f > 0 ? Vector<T>{} + T(1) : small) / (small + 1);
  return {value, negated ? -slope : slope};
}

}  // namespace
}  // namespace cpu
}  // namespace logo
