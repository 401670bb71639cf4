// InfoNCE's temperature where it is a number in memory.
#pragma once

#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

// The problem with the number in the place of its temperature.
inline InfoNCEProblem with_temperature(InfoNCEProblem p) {
  if (p.temperature_tensor == nullptr) return p;
  p.temperature = p.fp64 ? *static_cast<const double*>(p.temperature_tensor)
                         : double(*static_cast<const float*>(p.temperature_tensor));
  return p;
}

}  // namespace
}  // namespace cpu
}  // namespace logo
