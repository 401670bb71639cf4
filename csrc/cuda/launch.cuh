// The one place where kernels are launched: a function call, which other compilers also read.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace logo::cuda {

struct Grid {
  unsigned blocks, threads;
  size_t shared_bytes;
  cudaStream_t stream;
};

// Keeps a parameter out of deduction, so that the kernel alone decides its type.
template <class T>
struct Exactly {
  using Type = T;
};

template <class... P>
cudaError_t launch(void (*kernel)(P...), const Grid& grid, typename Exactly<P>::Type... arguments) {
#if defined(LOGO_EMULATED)
  return emulation::run(kernel, grid.blocks, grid.threads, grid.shared_bytes, arguments...);
#else
  void* addresses[sizeof...(P) + 1] = {&arguments..., nullptr};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(grid.blocks),
                          dim3(grid.threads), addresses, grid.shared_bytes, grid.stream);
#endif
}

}  // namespace logo::cuda
