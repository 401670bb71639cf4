// The launchers as compiled for each instruction set, for dispatch.cpp to choose from.
#pragma once

#include "cpu/parallel.h"
#include "logo/operations.h"

#define LOGO_DECLARE(name, Problem) Status name(const Problem& problem);

namespace logo {
namespace cpu {
namespace portable {
LOGO_LAUNCHERS(LOGO_DECLARE)
}
namespace avx2 {
LOGO_LAUNCHERS(LOGO_DECLARE)
}
namespace avx512 {
LOGO_LAUNCHERS(LOGO_DECLARE)
}
}  // namespace cpu
}  // namespace logo

#undef LOGO_DECLARE
