// Stands in for CUDA's header when g++ compiles the kernels for the emulator.
#pragma once

#if !defined(LOGO_EMULATED)
#error "the emulator's cuda_runtime.h is for LOGO_EMULATED builds alone"
#endif

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Blocks run one after another, so one copy serves them all. The section's start and end are how
// the emulator finds these variables to poison them.
#define __shared__ static __attribute__((section("emulated_shared")))

#include "emulation/types.h"
// Those above come first.
#include "emulation/arithmetic.h"
#include "emulation/copies.h"
#include "emulation/host.h"
#include "emulation/memory.h"
#include "emulation/run.h"
#include "emulation/threads.h"
