// Rows as unit vectors, and the gradient through them.
//
// A row is read once: a warp, or a block where rows are long, has it in registers, and reads only
// the columns beyond them again. Bound by the bytes of the crops, once in and once out.
#include "logo/unit.h"

#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/divider.cuh"
#include "cuda/output.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warp.cuh"
#include "logo/problem.h"

namespace logo {
namespace cuda {
namespace {

constexpr int kUnitThreads = 128;
constexpr int kHeld = 4;  // accesses of a row that a thread keeps
constexpr int kUnitBlocks = 8;
constexpr int kBackwardBlocks = 4;  // whose registers a multiprocessor has; unasked, ptxas spills

struct UnitArguments {
  UnitProblem p;
  int threads;       // that share a row: a warp or the block
  Divider of_image;  // the crops of an image

  __device__ __forceinline__ float* factors_of(int64_t row) const {
    return static_cast<float*>(p.factors) + 2 * row;
  }
};

// UNITS: the dtype of units and of their gradient, or kAny, where rows of any kind are read one
// number at a time.
constexpr int kAny = 4;
template <int UNITS>
struct UnitsOf {
  using Type = float;
};
template <>
struct UnitsOf<int(DType::bf16)> {
  using Type = bf16;
};
template <>
struct UnitsOf<int(DType::f16)> {
  using Type = f16;
};

// Eight numbers at a time of a row of S that lies in multiples of 16 bytes; zeros beyond it.
template <class S>
struct VectorRow {
  static constexpr int N = 8;
  S* at;
  int64_t dim;

  __device__ VectorRow(const Rows& rows, int64_t image, int64_t crop, int64_t dim_)
      : at(reinterpret_cast<S*>(const_cast<char*>(row_address(rows, image, crop)))), dim(dim_) {}

  __device__ __forceinline__ void load(int64_t column, float (&values)[N]) const {
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        float4 four = make_float4(0, 0, 0, 0);
        if (column + k < dim) four = *reinterpret_cast<const float4*>(at + column + k);
        values[k] = four.x;
        values[k + 1] = four.y;
        values[k + 2] = four.z;
        values[k + 3] = four.w;
      }
    } else {
      uint4 bits = make_uint4(0, 0, 0, 0);
      if (column < dim) bits = *reinterpret_cast<const uint4*>(at + column);
      widen(bits, values, S());
    }
  }
  __device__ __forceinline__ void store(int64_t column, const float (&values)[N]) const {
    if constexpr (sizeof(S) == 4) {
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        if (column + k >= dim) continue;
        __stwb(reinterpret_cast<float4*>(at + column + k),
               make_float4(values[k], values[k + 1], values[k + 2], values[k + 3]));
      }
    } else if (column < dim) {
      __stwb(reinterpret_cast<uint4*>(at + column), narrow(values, S()));
    }
  }
};

// One number at a time of a row of any dtype and stride.
struct AnyRow {
  static constexpr int N = 1;
  RowAt at;
  int64_t dim;

  __device__ AnyRow(const Rows& rows, int64_t image, int64_t crop, int64_t dim_)
      : at{row_address(rows, image, crop), rows.dtype, rows.element_stride}, dim(dim_) {}

  __device__ __forceinline__ void load(int64_t column, float (&values)[N]) const {
    values[0] = column < dim ? read_element(at, column) : 0.0f;
  }
  __device__ __forceinline__ void store(int64_t column, const float (&values)[N]) const {
    if (column >= dim) return;
    write_element(const_cast<char*>(at.address), at.dtype, column * at.element_stride, values[0]);
  }
};

template <class S, int UNITS>
struct RowOf {
  using Type = VectorRow<S>;
};
template <class S>
struct RowOf<S, kAny> {
  using Type = AnyRow;
};

// Over the threads that share a row, in a fixed order; all of them get it.
struct Sum {
  static __device__ __forceinline__ float of(float x, float y) { return x + y; }
  static __device__ __forceinline__ float warp(float x) { return warp_sum(x); }
};
struct Largest {
  static __device__ __forceinline__ float of(float x, float y) { return fmaxf(x, y); }
  static __device__ __forceinline__ float warp(float x) { return warp_max(x); }
};
template <class Of>
__device__ __forceinline__ float over_row(float value, int threads, float* exchange) {
  value = Of::warp(value);
  if (threads > 32) {  // alike in the whole block, whose threads come here equally often
    __syncthreads();   // after the reads of the call before
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = value;
    __syncthreads();
    value = exchange[0];
#pragma unroll
    for (int warp = 1; warp < kUnitThreads / 32; ++warp) value = Of::of(value, exchange[warp]);
  }
  return value;
}

// A thread's part of a row: the accesses that it keeps, and those beyond.
template <int N>
struct UnitShare {
  int64_t first, step, dim;

  __device__ UnitShare(const UnitArguments& a)
      : first(int64_t(threadIdx.x % a.threads) * N), step(int64_t(a.threads) * N), dim(a.p.dim) {}

  template <class Each>
  __device__ __forceinline__ void held(const Each& each) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) each(k, first + k * step);
  }
  template <class Each>
  __device__ __forceinline__ void beyond(const Each& each) const {
#pragma unroll 1
    for (int64_t column = first + kHeld * step; column < dim; column += step) each(column);
  }
};

// each(row, image, crop) for the rows of this thread's warp or block.
template <class Each>
__device__ __forceinline__ void each_row(const UnitArguments& a, const Each& each) {
  const int at_once = kUnitThreads / a.threads;
#pragma unroll 1
  for (int64_t row = int64_t(blockIdx.x) * at_once + threadIdx.x / a.threads;
       row < a.p.images * a.of_image.by; row += int64_t(gridDim.x) * at_once) {
    const int64_t image = a.of_image.quotient(row);
    each(row, image, row - image * a.of_image.by);
  }
}

template <class T, int UNITS>
__global__ void __launch_bounds__(kUnitThreads)
    unit_kernel(const __grid_constant__ UnitArguments a) {
  using From = typename RowOf<T, UNITS>::Type;
  using To = typename RowOf<typename UnitsOf<UNITS>::Type, UNITS>::Type;
  constexpr int N = From::N;
  __shared__ float exchange[kUnitThreads / 32];
  const UnitShare<N> share(a);
  each_row(a, [&](int64_t row, int64_t image, int64_t crop) {
    const From z(a.p.z, image, crop, a.p.dim);
    const To to(a.p.unit, image, crop, a.p.dim);
    float held[kHeld][N];
    share.held([&](int k, int64_t column) { z.load(column, held[k]); });
    const auto squares = [&](float factor) {
      float sum = 0;
      const auto add = [&](const float (&values)[N]) {
#pragma unroll
        for (int k = 0; k < N; ++k) sum = fmaf(values[k] * factor, values[k] * factor, sum);
      };
      share.held([&](int k, int64_t) { add(held[k]); });
      share.beyond([&](int64_t column) {
        float values[N];
        z.load(column, values);
        add(values);
      });
      return over_row<Sum>(sum, a.threads, exchange);
    };
    float factor = 1, sum = squares(1);
    if (!ordinary(sum)) {  // alike in all threads of the row
      float most = 0;
      const auto look = [&](const float (&values)[N]) {
#pragma unroll
        for (int k = 0; k < N; ++k) most = fmaxf(most, fabsf(values[k]));
      };
      share.held([&](int k, int64_t) { look(held[k]); });
      share.beyond([&](int64_t column) {
        float values[N];
        z.load(column, values);
        look(values);
      });
      factor = towards_one(over_row<Largest>(most, a.threads, exchange));
      sum = squares(factor);
    }
    const UnitFactors<float> of = unit_factors(factor, sum);
    const auto write = [&](int64_t column, float (&values)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] = values[k] * of.first * of.second;
      to.store(column, values);
    };
    share.held([&](int k, int64_t column) { write(column, held[k]); });
    share.beyond([&](int64_t column) {
      float values[N];
      z.load(column, values);
      write(column, values);
    });
    if (share.first == 0) {
      float* const factors = a.factors_of(row);
      factors[0] = of.first;
      factors[1] = of.second;
    }
  });
}

// (g − (g·ẑ) ẑ)/‖z‖; beyond the largest number of its dtype, that number.
template <class T, int UNITS>
__global__ void __launch_bounds__(kUnitThreads, kBackwardBlocks)
    unit_backward_kernel(const __grid_constant__ UnitArguments a) {
  using From = typename RowOf<typename UnitsOf<UNITS>::Type, UNITS>::Type;
  using To = typename RowOf<T, UNITS>::Type;
  constexpr int N = From::N;
  __shared__ float exchange[kUnitThreads / 32];
  const UnitShare<N> share(a);
  const float most = float(largest(a.p.grad_z.dtype));
  each_row(a, [&](int64_t row, int64_t image, int64_t crop) {
    const From unit(a.p.unit, image, crop, a.p.dim), grad(a.p.grad, image, crop, a.p.dim);
    float units[kHeld][N], grads[kHeld][N], sum = 0;
    const auto add = [&](const float (&u)[N], const float (&g)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) sum = fmaf(u[k], g[k], sum);
    };
    share.held([&](int k, int64_t column) {
      unit.load(column, units[k]);
      grad.load(column, grads[k]);
    });
    share.held([&](int k, int64_t) { add(units[k], grads[k]); });
    share.beyond([&](int64_t column) {
      float u[N], g[N];
      unit.load(column, u);
      grad.load(column, g);
      add(u, g);
    });
    const float along = over_row<Sum>(sum, a.threads, exchange);
    const float first = __ldg(a.factors_of(row)), second = __ldg(a.factors_of(row) + 1);
    const To to(a.p.grad_z, image, crop, a.p.dim);
    const auto write = [&](int64_t column, const float (&u)[N], float (&g)[N]) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        g[k] = clamp_keeping_nan(fmaf(-along, u[k], g[k]) * second * first, most);
      }
      to.store(column, g);
    };
    share.held([&](int k, int64_t column) { write(column, units[k], grads[k]); });
    share.beyond([&](int64_t column) {
      float u[N], g[N];
      unit.load(column, u);
      grad.load(column, g);
      write(column, u, g);
    });
  });
}

// The dtype of the crops, and UNITS.
template <class T_, int UNITS_>
struct UnitKinds {
  using T = T_;
  static constexpr int UNITS = UNITS_;
};

// Calls run(UnitKinds<T, UNITS>()) for the kernel that the rows allow. of_z: z, or its gradient.
template <class Run>
cudaError_t with_rows(const UnitProblem& p, const Rows& of_z, const Run& run) {
  const bool vectors = in_vectors(of_z, p.images, p.dim) && in_vectors(p.unit, p.images, p.dim) &&
                       (!p.grad.present() || in_vectors(p.grad, p.images, p.dim));
  constexpr int kF32 = int(DType::f32), kBf16 = int(DType::bf16), kF16 = int(DType::f16);
  const int crops = int(of_z.dtype), units = int(p.unit.dtype);
  if (vectors && crops == kF32 && units == kF32) return run(UnitKinds<float, kF32>());
  if (vectors && crops == kF32 && units == kBf16) return run(UnitKinds<float, kBf16>());
  if (vectors && crops == kF32 && units == kF16) return run(UnitKinds<float, kF16>());
  if (vectors && crops == kBf16 && units == kF32) return run(UnitKinds<bf16, kF32>());
  if (vectors && crops == kBf16 && units == kBf16) return run(UnitKinds<bf16, kBf16>());
  if (vectors && crops == kF16 && units == kF32) return run(UnitKinds<f16, kF32>());
  if (vectors && crops == kF16 && units == kF16) return run(UnitKinds<f16, kF16>());
  return run(UnitKinds<float, kAny>());
}

// kernel(UnitKinds<T, UNITS>) gives the kernel.
template <class Kernel>
Status run(const char* name, const UnitProblem& p, const Rows& of_z, const Queue& queue,
           Failure* failure, const Kernel& kernel) {
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld L=%lld D=%lld %s", static_cast<long long>(p.images),
           static_cast<long long>(of_z.count), static_cast<long long>(p.dim), name_of(of_z.dtype));
  Limits limits;
  const Status entered = enter(name, shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;
  const int64_t rows = p.images * of_z.count;
  const cudaError_t error = with_rows(p, of_z, [&](auto kinds) {
    using Each = decltype(kinds);
    constexpr int per_thread = kHeld * (Each::UNITS == kAny ? 1 : 8);
    const int threads = p.dim > 32 * per_thread ? kUnitThreads : 32;
    const int64_t at_once = kUnitThreads / threads, needed = (rows + at_once - 1) / at_once;
    const int64_t most = int64_t(limits.multiprocessors) * kUnitBlocks;
    const Grid grid{unsigned(needed < most ? needed : most), kUnitThreads, 0,
                    static_cast<cudaStream_t>(queue.stream)};
    return launch(kernel(kinds), grid, {p, threads, Divider(of_z.count)});
  });
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

}  // namespace

Status unit(const UnitProblem& p, const Queue& queue, Failure* failure) {
  return run("unit", p, p.z, queue, failure, [](auto kinds) {
    return &unit_kernel<typename decltype(kinds)::T, decltype(kinds)::UNITS>;
  });
}

Status unit_backward(const UnitProblem& p, const Queue& queue, Failure* failure) {
  return run("unit_backward", p, p.grad_z, queue, failure, [](auto kinds) {
    return &unit_backward_kernel<typename decltype(kinds)::T, decltype(kinds)::UNITS>;
  });
}

}  // namespace cuda
}  // namespace logo
