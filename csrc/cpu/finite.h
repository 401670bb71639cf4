// Finite numbers stay finite where they become results: docs/design.md, Saturation.
#pragma once

#include "logo/dtypes.h"

namespace logo {
namespace cpu {
namespace {

// As T; the largest number of T in the place of one beyond it. NaN stays.
template <class T>
inline T finite(double value) {
  const double most = largest(kDType<T>);
  return T(value > most ? most : value < -most ? -most : value);
}

}  // namespace
}  // namespace cpu
}  // namespace logo
