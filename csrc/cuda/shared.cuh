// Dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

namespace logo::cuda {

// All kernels see the same bytes: a declaration of its own in each would need a type of its own.
__device__ __forceinline__ unsigned char* dynamic_shared() {
#if defined(LOGO_EMULATED)
  return emulation::dynamic_shared();
#else
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return dynamic_shared_bytes;
#endif
}

}  // namespace logo::cuda
