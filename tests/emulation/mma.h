// The product of tensor cores, and the loads of its operands.
#pragma once

#include "block.h"

namespace emulation {

// For the 32 lanes of a warp, all at mma_m16n8k16.
void multiply(Thread* lanes);
// Likewise at load_matrices.
void load(Thread* lanes);

}  // namespace emulation
