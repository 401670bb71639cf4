// What every launcher does on the host: limits of the device, grid, launch, and a failure in words.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/launch.cuh"
#include "cuda/plan.h"
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

// Asked of the driver once: the answers cost more than a launch.
class Occupancy {
 public:
  // Allows the kernel its shared memory and tells how many of its blocks a multiprocessor holds.
  template <class Kernel>
  static cudaError_t blocks(Kernel kernel, int device, const Plan& plan, int* count) {
    static std::mutex mutex;
    static std::map<std::tuple<const void*, int, int, int64_t>, int> known;
    const void* const address = reinterpret_cast<const void*>(kernel);
    const auto key = std::make_tuple(address, device, plan.threads, plan.shared_bytes);
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
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(count, kernel, plan.threads,
                                                          size_t(plan.shared_bytes));
    if (error == cudaSuccess) known[key] = *count;
    return error;
  }
};

// Launches as many blocks as the device holds at once, but no more than there are images.
template <class Arguments>
Status launch_over_images(const char* name, const char* shape, void (*kernel)(Arguments),
                          const Arguments& arguments, int64_t images, const Limits& limits,
                          const Queue& queue, Failure* failure) {
  const Plan& plan = arguments.plan;
  if (plan.threads == 0) {
    return fail(failure, name, shape, queue.device,
                "its shared memory does not hold even a part of an image; use another backend");
  }
  int blocks = 0;
  cudaError_t error = Occupancy::blocks(kernel, queue.device, plan, &blocks);
  if (error == cudaSuccess && blocks == 0) error = cudaErrorInvalidConfiguration;
  if (error == cudaSuccess) {
    const int64_t most = int64_t(blocks) * limits.multiprocessors;
    const Grid grid{unsigned(images < most ? images : most), unsigned(plan.threads),
                    size_t(plan.shared_bytes), static_cast<cudaStream_t>(queue.stream)};
    error = launch(kernel, grid, arguments);
  }
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

// Makes the device of the queue current for this library's calls, and reads its limits.
inline Status enter(const char* name, const char* shape, const Queue& queue, Limits* limits,
                    Failure* failure) {
  cudaError_t error = cudaSetDevice(queue.device);
  if (error == cudaSuccess) error = limits_of(queue.device, limits);
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
