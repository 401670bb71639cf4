// The product of tensor cores.
#pragma once

#include "block.h"

namespace emulation {

// For the 32 lanes of a warp, all at mma_m16n8k16.
void multiply(Thread* lanes);

}  // namespace emulation
