// The formulas of the cosine terms, one place for host and device.
#pragma once

#include "logo/macros.h"

namespace logo {

// Squared norms for which products of inverse norms, and gradients, stay inside the dtype.
template <class T>
LOGO_FUNCTION bool squares_well(T squared_norm) {
  constexpr T most = sizeof(T) == 4 ? T(0x1p80) : T(0x1p600);
  return squared_norm >= 1 / most && squared_norm <= most;  // false for NaN
}

// Every gradient of the cosine loss is a sum of one kind. For a row x, partners t_j and weights w_j
//
//   d/dx Σ_j w_j cos(x, t_j)  =  Σ_j w_j/(‖x‖‖t_j‖) t_j  −  (Σ_j w_j cos_j)/‖x‖² x,
//
// in which the inner products dots[j] = x·t_j are all that is needed of the rows. Writes the
// coefficients of t_j, adds the coefficient of x to own, and returns Σ_j cos_j. An inverse norm of
// zero stands for a zero row: its cosines and gradients vanish.
//
// skip: a partner that does not count (x itself), or −1. weight(j) gives w_j.
template <class T, class Weight>
LOGO_FUNCTION T cosine_row(const T* dots, int count, int skip, T inverse_x, const T* inverse_t,
                           Weight weight, T* coefficients, T* own) {
  T cosines = 0, weighted = 0;
  for (int j = 0; j < count; ++j) {
    const T scale = j == skip ? T(0) : inverse_x * inverse_t[j];
    const T cosine = j == skip ? T(0) : dots[j] * scale;
    cosines += cosine;
    weighted += weight(j) * cosine;
    coefficients[j] = weight(j) * scale;
  }
  *own -= weighted * inverse_x * inverse_x;
  return cosines;
}

// Where all partners have one weight, their unit vectors enter through their sum
// T = Σ_j t_j/‖t_j‖ alone,
//
//   d/dx w Σ_j cos(x, t_j)  =  w/‖x‖ T  −  w (x·T)/‖x‖³ x,
//
// and a partner that is x itself changes nothing, since the two terms of its own cancel. dot = x·T.
// Writes the coefficient of T, adds the coefficient of x to own, and returns Σ_j cos_j.
template <class T>
LOGO_FUNCTION T cosine_with_sum(T dot, T inverse_x, T weight, T* on_sum, T* own) {
  const T cosines = dot * inverse_x;
  *on_sum = weight * inverse_x;
  *own -= weight * cosines * inverse_x * inverse_x;
  return cosines;
}

}  // namespace logo
