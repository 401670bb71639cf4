// Saved gradients times the upstream gradient, in place: all that backward has left to do.
//
// One launch for all gradients of a step, and no look at a value by the host. Where there is
// nothing to multiply, an upstream gradient of one, each block reads that one number and ends.
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/output.cuh"
#include "cuda/vectors.cuh"

namespace logo {
namespace cuda {
namespace {

constexpr int kThreads = 128;
// Blocks on a multiprocessor. They walk over the rest of the work, so that a launch with nothing to
// do starts few.
constexpr int kBlocks = 16;

// How a gradient is laid over the threads.
struct ScaledRows {
  bool vectors;     // of 16 bytes
  int threads;      // of a row: a power of two up to kThreads; a block has kThreads / threads rows
  unsigned before;  // blocks that the gradients before this one have work for, modulo the grid
};

struct ScaleArguments {
  ScaleProblem p;
  ScaledRows of[kMaxGradients];
};

__device__ __forceinline__ float number_of(const Rows& rows, int64_t image, int64_t crop) {
  return read_element({row_address(rows, image, crop), rows.dtype, 1}, 0);
}

// A row by `threads` threads, of which this one is `member`.
template <class T>
__device__ __forceinline__ void scale_row(char* row, int64_t dim, bool vectors, float factor,
                                          int member, int threads) {
  if (vectors) {
    uint4* const at = reinterpret_cast<uint4*>(row);
#pragma unroll 2
    for (int64_t k = member; k < dim / kVector<T>; k += threads) {
      float values[kVector<T>];
      widen(__ldcs(at + k), values, T());
      scale(values, factor);
      __stcs(at + k, narrow(values, T()));
    }
  } else {
    T* const at = reinterpret_cast<T*>(row);
    for (int64_t k = member; k < dim; k += threads) from_float(to_float(at[k]) * factor, at + k);
  }
}

__device__ __forceinline__ void scale_rows(const ScaleArguments& a, int index) {
  const ScaleProblem& p = a.p;
  const ScaledRows& scaled = a.of[index];
  const Rows &rows = p.gradients[index], &row_scale = p.row_scales[index];
  // Each gradient begins where the last one ended, so that small ones keep all blocks busy.
  const int64_t block = (blockIdx.x + gridDim.x - scaled.before) % gridDim.x;
  const int member = threadIdx.x % scaled.threads, at_once = kThreads / scaled.threads;
  const int64_t first = block * at_once + threadIdx.x / scaled.threads;
  const int64_t step = int64_t(gridDim.x) * at_once, crops = rows.count;
  // Divided once: the loop carries from crops to images.
  const int64_t step_images = step / crops, step_crops = step % crops;
  int64_t image = first / crops, crop = first % crops;
  while (image < p.images) {
    char* const row = const_cast<char*>(row_address(rows, image, crop));
    const bool vectors = scaled.vectors;
    // The product of the two in fp32, so that fp16 reaches inf where it must.
    float factor = number_of(p.upstream, image, 0);
    if (row_scale.present()) factor *= number_of(row_scale, image, crop);
    switch (rows.dtype) {
      case DType::f32: scale_row<float>(row, p.dim, vectors, factor, member, scaled.threads); break;
      case DType::bf16: scale_row<bf16>(row, p.dim, vectors, factor, member, scaled.threads); break;
      case DType::f16: scale_row<f16>(row, p.dim, vectors, factor, member, scaled.threads); break;
      case DType::f64: break;  // refused before
    }
    image += step_images;
    crop += step_crops;
    if (crop >= crops) {
      crop -= crops;
      ++image;
    }
  }
}

__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleArguments a) {
  const Rows& upstream = a.p.upstream;
  const bool one = upstream.image_stride == 0 && number_of(upstream, 0, 0) == 1;  // NaN is not one
#pragma unroll 1
  for (int k = 0; k < kMaxGradients; ++k) {
    if (!a.p.gradients[k].present()) continue;
    if (!one || a.p.row_scales[k].present()) scale_rows(a, k);
  }
}

}  // namespace

Status scale(const ScaleProblem& p, const Queue& queue, Failure* failure) {
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld V=%lld, %lld, %lld D=%lld",
           static_cast<long long>(p.images), static_cast<long long>(p.gradients[0].count),
           static_cast<long long>(p.gradients[1].count),
           static_cast<long long>(p.gradients[2].count), static_cast<long long>(p.dim));
  Limits limits;
  const Status entered = enter("scale", shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;

  ScaleArguments arguments;
  arguments.p = p;
  int64_t needed = 0, before[kMaxGradients];
  for (int k = 0; k < kMaxGradients; ++k) {
    const Rows& rows = p.gradients[k];
    ScaledRows& scaled = arguments.of[k];
    before[k] = needed;
    scaled.vectors = in_vectors(rows, p.images, p.dim);
    const int64_t of_row = scaled.vectors ? p.dim * dtype_bytes(rows.dtype) / 16 : p.dim;
    scaled.threads = 1;
    while (scaled.threads < kThreads && scaled.threads < of_row) scaled.threads *= 2;
    const int64_t at_once = kThreads / scaled.threads;
    needed += (p.images * rows.count + at_once - 1) / at_once;  // none of an absent one
  }
  if (needed == 0) return Status::ok;
  const int64_t most = int64_t(limits.multiprocessors) * kBlocks;
  const int64_t blocks = needed < most ? needed : most;
  for (int k = 0; k < kMaxGradients; ++k) arguments.of[k].before = unsigned(before[k] % blocks);
  const Grid grid{unsigned(blocks), kThreads, 0, static_cast<cudaStream_t>(queue.stream)};
  const cudaError_t error = launch(scale_kernel, grid, arguments);
  return error == cudaSuccess
             ? Status::ok
             : fail(failure, "scale", shape, queue.device, cudaGetErrorString(error));
}

Status probe(int device, Failure* failure) {
  Limits limits;
  const Status entered = enter("a kernel", "as a probe", {device}, &limits, failure);
  if (entered != Status::ok) return entered;
  // All kernels are built for the same devices.
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, scale_kernel);
  return error == cudaSuccess
             ? Status::ok
             : fail(failure, "a kernel", "as a probe", device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
