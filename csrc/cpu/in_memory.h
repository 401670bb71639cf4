// Numbers of a problem that are given in memory, put where the others stand.
#pragma once

#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

inline double number_at(const void* address, bool fp64) {
  return fp64 ? *static_cast<const double*>(address) : double(*static_cast<const float*>(address));
}

// A τ in memory, which the host has not looked at, is NaN unless it is positive.
inline InfoNCEProblem with_numbers(InfoNCEProblem p) {
  if (p.temperature_tensor != nullptr) {
    p.temperature = number_at(p.temperature_tensor, p.fp64());
    if (!(p.temperature > 0)) p.temperature = __builtin_nan("");
  }
  return p;
}

inline CosineProblem with_numbers(CosineProblem p) {
  if (p.repulsion_weight_tensor != nullptr) {
    p.repulsion_weight *= number_at(p.repulsion_weight_tensor, p.fp64());
  }
  return p;
}

}  // namespace
}  // namespace cpu
}  // namespace logo
