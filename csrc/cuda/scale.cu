// A saved gradient times the upstream gradient, in place: what backward has left to do.
//
// One launch, and no look at a value by the host. Where there is nothing to multiply, an upstream
// gradient of one, each block reads that one number and ends.
#include <cuda_runtime.h>

#include "cuda/launcher.h"
#include "cuda/output.cuh"
#include "cuda/vectors.cuh"

namespace logo {
namespace cuda {
namespace {

constexpr int kThreads = 128;
// Blocks on a multiprocessor; the rest of the work they walk over, so that a launch with nothing to
// do starts few.
constexpr int kBlocks = 16;

struct ScaleArguments {
  Output gradient;
  Rows upstream, row_scale;
  int64_t images, dim;
  int64_t row_blocks;  // a block takes kThreads vectors of a row
};

template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleArguments a) {
  constexpr int N = kVector<T>;
  const bool per_image = a.upstream.image_stride != 0, per_row = a.row_scale.present();
  const auto number = [](const Rows& rows, int64_t image, int64_t crop) {
    return read_element({row_address(rows, image, crop), rows.dtype, 1}, 0);
  };
  if (!per_image && !per_row && number(a.upstream, 0, 0) == 1) return;  // NaN is not one
  const int64_t crops = a.gradient.rows.count;
#pragma unroll 1
  for (int64_t block = blockIdx.x; block < a.images * crops * a.row_blocks; block += gridDim.x) {
    const int64_t row = block / a.row_blocks, image = row / crops, crop = row - image * crops;
    const int64_t column = ((block - row * a.row_blocks) * kThreads + threadIdx.x) * N;
    if (column >= a.dim) continue;
    // The product of the two in fp32, so that fp16 reaches inf where it must.
    float factor = number(a.upstream, image, 0);
    if (per_row) factor *= number(a.row_scale, image, crop);
    const char* const at = row_address(a.gradient.rows, image, crop) + column * int64_t(sizeof(T));
    float values[N];
    if (a.gradient.vectors) {
      widen(__ldcs(reinterpret_cast<const uint4*>(at)), values, T());
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        values[k] = column + k < a.dim ? to_float(reinterpret_cast<const T*>(at)[k]) : 0.0f;
      }
    }
    scale(values, factor);
    store_vector<T>(a.gradient, image, int(crop), column, a.dim, values);
  }
}

}  // namespace

Status scale(const ScaleProblem& p, const Queue& queue, Failure* failure) {
  const DType dtype = p.gradient.dtype;
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld V=%lld D=%lld %s", static_cast<long long>(p.images),
           static_cast<long long>(p.gradient.count), static_cast<long long>(p.dim), name_of(dtype));
  Limits limits;
  const Status entered = enter("scale", shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;

  const int64_t vector = 16 / dtype_bytes(dtype);
  ScaleArguments arguments;
  arguments.gradient = Output(p.gradient, p.images, p.dim, dtype);
  arguments.upstream = p.upstream;
  arguments.row_scale = p.row_scale;
  arguments.images = p.images;
  arguments.dim = p.dim;
  arguments.row_blocks = (p.dim + kThreads * vector - 1) / (kThreads * vector);
  const int64_t needed = p.images * p.gradient.count * arguments.row_blocks;
  const int64_t most = int64_t(limits.multiprocessors) * kBlocks;
  const auto kernel = dtype == DType::f32    ? scale_kernel<float>
                      : dtype == DType::bf16 ? scale_kernel<bf16>
                                             : scale_kernel<f16>;
  const Grid grid{unsigned(needed < most ? needed : most), kThreads, 0,
                  static_cast<cudaStream_t>(queue.stream)};
  const cudaError_t error = launch(kernel, grid, arguments);
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
  const cudaError_t error = cudaFuncGetAttributes(&attributes, scale_kernel<float>);
  return error == cudaSuccess
             ? Status::ok
             : fail(failure, "a kernel", "as a probe", device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
