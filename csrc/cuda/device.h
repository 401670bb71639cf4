// A device as launchers see it: made current, its limits, and a failure in words.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/launch.cuh"
#include "cuda/limits.h"
#include "logo/operations.h"

namespace logo {
namespace cuda {

inline Status fail(Failure* failure, const char* launch, const char* shape, int device,
                   const char* reason) {
  snprintf(failure->text, sizeof(failure->text), "CUDA launch of %s, %s, on device %d failed: %s",
           launch, shape, device, reason);
  return Status::launch_failed;
}

cudaError_t limits_of(int device, Limits* limits);  // device.cu

// The driver is asked once: its answers cost more than a launch.
class Occupancy {
 public:
  // Allows the kernel its shared memory and tells how many of its blocks a multiprocessor holds.
  template <class Kernel>
  static cudaError_t blocks(Kernel kernel, int device, int threads, int64_t shared_bytes,
                            int* count) {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, int, int64_t>, int> known;
    const void* const address = reinterpret_cast<const void*>(kernel);
    const auto key = std::make_tuple(address, device, threads, shared_bytes);
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = known.find(key);
    if (found != known.end()) {
      *count = found->second;
      return cudaSuccess;
    }
    // The most that a launch may ask for: another shape's launch must not take it back.
    Limits limits;
    cudaError_t error = limits_of(device, &limits);
    if (error != cudaSuccess) return error;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 int(limits.shared_per_block));
    if (error != cudaSuccess) return error;
    error =
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, kernel, threads, size_t(shared_bytes));
    if (error == cudaSuccess) known[key] = *count;
    return error;
  }
};

// Makes a device current for this library's calls, and reads its limits.
inline cudaError_t enter(int device, Limits* limits) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? limits_of(device, limits) : error;
}

// Enters as part of a launch; failure says why not.
inline Status enter(const char* name, const char* shape, const Queue& queue, Limits* limits,
                    Failure* failure) {
  const cudaError_t error = enter(queue.device, limits);
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::bf16: return "bfloat16";
    case DType::f16: return "float16";
  }
  return "unknown dtype";
}

}  // namespace cuda
}  // namespace logo
