// Limits of the devices, and the questions that Python asks of them.
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/image_plan.h"
#include "cuda/ticket.cuh"

namespace logo {
namespace cuda {

cudaError_t limits_of(int device, Limits* limits) {
  // A device's limits never change; asking takes several calls.
  static std::mutex mutex;
  static std::map<int, Limits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) {
    *limits = found->second;
    return cudaSuccess;
  }
  int shared = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&limits->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  if (error != cudaSuccess) return error;
  limits->shared_per_block = shared;
  known[device] = *limits;
  return cudaSuccess;
}

// Questions leave the current device as it is: they are asked before a launch is.
static bool know(int device, Limits* limits, Failure* failure) {
  const cudaError_t error = limits_of(device, limits);
  if (error != cudaSuccess) {
    fail(failure, "nothing", "limits", device, cudaGetErrorString(error));
  }
  return error == cudaSuccess;
}

int64_t workspace_bytes(int device, Failure* failure) {
  Limits limits;
  if (!know(device, &limits, failure)) return 0;
  // A multiprocessor holds 32 blocks at most.
  return kFoundOffset + int64_t(limits.multiprocessors) * 32 * kFoundBytes;
}

int64_t shared_bytes(int device, Failure* failure) {
  Limits limits;
  if (!know(device, &limits, failure)) return 0;
  return limits.shared_per_block;
}

// In the words of CMake: "80-real, 90a-real, 100", the last one with PTX for newer ones.
const char* architectures() { return LOGO_CUDA_ARCHITECTURES; }

int max_rows() { return kMaxRows; }

}  // namespace cuda
}  // namespace logo
