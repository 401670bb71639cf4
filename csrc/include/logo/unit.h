// The factors that make a row a unit vector, for host and device.
#pragma once

#include <math.h>

#include "logo/macros.h"

namespace logo {

// z/‖z‖ = (z·first)·second. Both are needed where the norm, or its inverse, is no number of T.
template <class T>
struct UnitFactors {
  T first, second;
};

// Whether the sum of a row's squares has neither overflowed nor lost digits: then the first factor
// is one.
template <class T>
LOGO_FUNCTION bool ordinary(T squares) {
  constexpr T most = sizeof(T) == 4 ? T(0x1p80) : T(0x1p600);
  return squares >= 1 / most && squares <= most;  // false for NaN
}

// The power of two that brings magnitudes up to `largest` near one. Below the normal numbers no
// power does, and 2^120 suffices.
template <class T>
LOGO_FUNCTION T towards_one(T largest) {
  constexpr int most = sizeof(T) == 4 ? 120 : 1000;
  int exponent = 0;
  frexp(double(largest), &exponent);
  exponent = exponent > most ? most : exponent < -most ? -most : exponent;
  return T(ldexp(1.0, -exponent));
}

LOGO_FUNCTION float root(float x) { return sqrtf(x); }
LOGO_FUNCTION double root(double x) { return sqrt(x); }

// From Σ (first·z)². Zeros for a zero row, NaN for one that has no norm.
template <class T>
LOGO_FUNCTION UnitFactors<T> unit_factors(T first, T squares) {
  if (squares == 0) return {0, 0};
  const T second = 1 / root(squares);
  return {first, second > 0 ? second : second * T(NAN)};
}

}  // namespace logo
