// Where a softmax of cosines needs the largest logit so far, for both halves.
//
// Cosines lie in [−1, 1], so that base-2 exponents of the weights lie within ±log2(e)/τ. Down to
// some temperature these leave room in the dtype: then one fixed offset serves all negatives, and
// sums over parts of them add up as they are. Below it the maximum so far is subtracted.
#pragma once

#include "logo/macros.h"

namespace logo {

constexpr double kLog2E = 1.44269504088896340736;

// On the CPU the offset is the exponent of a cosine of one, and weights reach down to 2^−r, r this
// range of exponents: they are ordinary numbers, with room below for their products with unit
// vectors. In fp32 it ends at τ = 0.029, in fp64 at 0.0032.
template <class T>
constexpr double kWidestRange = sizeof(T) == 4 ? 100 : 900;

template <class T>
LOGO_FUNCTION bool needs_running_maximum(double temperature) {
  return 2 * (kLog2E / temperature) > kWidestRange<T>;
}

// On a GPU there is no offset, and exponents lie within ±58 from here on, so that sums of K
// weights, and of their products, stay in fp32 at either end. fp16, which has few exponents, keeps
// weights only if they are relative to the largest, at every temperature. A temperature in memory
// is not known to the host, which chooses.
constexpr double kLeastFixedTemperature = 0.025;

}  // namespace logo
