// Rows as unit vectors, and the gradient through them; see backends/pairs.py.
//
// A row is read once: a warp, or a block where rows are long, has it in registers, and only what
// goes beyond them is read again. Bound by the bytes of the crops, once in and once out.
#include "logo/unit.h"

#include <cuda_runtime.h>

#include "cuda/launcher.h"
#include "cuda/output.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warp.cuh"
#include "logo/pair_problem.h"

namespace logo {
namespace cuda {
namespace {

constexpr int kUnitThreads = 128;
constexpr int kHeld = 4;  // vectors of a row that a thread keeps
constexpr int kUnitBlocks = 8;

struct UnitArguments {
  Rows crops, units, grad;
  float* factors;
  int64_t images, dim;
  bool crops_in_vectors, others_in_vectors;
};

// A row as N numbers at a time: in one access where that is allowed.
template <int N>
struct UnitRow {
  char* address;
  DType dtype;
  int64_t step, dim;
  bool vectors;

  __device__ UnitRow(const Rows& rows, int64_t image, int64_t crop, int64_t dim_, bool vectors_)
      : address(const_cast<char*>(row_address(rows, image, crop))),
        dtype(rows.dtype),
        step(rows.element_stride),
        dim(dim_),
        vectors(vectors_) {}

  // Zeros beyond the row.
  __device__ __forceinline__ void load(int64_t column, float (&values)[N]) const {
    if (vectors && column + N <= dim) {
      switch (dtype) {
        case DType::bf16: return load_halves<bf16>(column, values);
        case DType::f16: return load_halves<f16>(column, values);
        default: break;
      }
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        const float4 four =
            *reinterpret_cast<const float4*>(reinterpret_cast<const float*>(address) + column + k);
        values[k] = four.x;
        values[k + 1] = four.y;
        values[k + 2] = four.z;
        values[k + 3] = four.w;
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      values[k] = column + k < dim ? read_element({address, dtype, step}, column + k) : 0.0f;
    }
  }

  __device__ __forceinline__ void store(int64_t column, const float (&values)[N]) const {
    if (vectors && column + N <= dim) {
      switch (dtype) {
        case DType::bf16: return store_halves<bf16>(column, values);
        case DType::f16: return store_halves<f16>(column, values);
        default: break;
      }
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        *reinterpret_cast<float4*>(reinterpret_cast<float*>(address) + column + k) =
            make_float4(values[k], values[k + 1], values[k + 2], values[k + 3]);
      }
      return;
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (column + k < dim) write_element(address, dtype, (column + k) * step, values[k]);
    }
  }

 private:
  template <class Half>
  __device__ __forceinline__ void load_halves(int64_t column, float (&values)[N]) const {
    const uint4 bits =
        *reinterpret_cast<const uint4*>(reinterpret_cast<const Half*>(address) + column);
    widen(bits, values, Half());
  }
  template <class Half>
  __device__ __forceinline__ void store_halves(int64_t column, const float (&values)[N]) const {
    *reinterpret_cast<uint4*>(reinterpret_cast<Half*>(address) + column) = narrow(values, Half());
  }
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
template <class Of, bool WHOLE_BLOCK>
__device__ __forceinline__ float over_row(float value, float* exchange) {
  value = Of::warp(value);
  if constexpr (WHOLE_BLOCK) {
    __syncthreads();  // what a former call left there is read
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = value;
    __syncthreads();
    value = exchange[0];
#pragma unroll
    for (int warp = 1; warp < kUnitThreads / 32; ++warp) value = Of::of(value, exchange[warp]);
  }
  return value;
}

constexpr int kNumbers = 8;  // of a vector: 16 bytes of halves, twice 16 of fp32

// each(k, column) for the vectors of a row that a thread keeps, and for those beyond.
template <bool WHOLE_BLOCK>
struct UnitShare {
  static constexpr int kThreads = WHOLE_BLOCK ? kUnitThreads : 32;
  static constexpr int kRows = kUnitThreads / kThreads;  // at once

  template <class Each>
  static __device__ __forceinline__ void held(const Each& each) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) each(k, column(k));
  }
  template <class Each>
  static __device__ __forceinline__ void beyond(int64_t dim, const Each& each) {
#pragma unroll 1
    for (int64_t at = column(kHeld); at < dim; at += kThreads * kNumbers) each(at);
  }
  static __device__ __forceinline__ int64_t column(int k) {
    return (int64_t(threadIdx.x % kThreads) + k * kThreads) * kNumbers;
  }
  static __device__ __forceinline__ int64_t first_row() {
    return int64_t(blockIdx.x) * kRows + threadIdx.x / kThreads;
  }
};

// Σ (factor·z)²
__device__ __forceinline__ float squares_of(const float (&values)[kNumbers], float factor) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kNumbers; ++k) {
    const float z = values[k] * factor;
    sum = fmaf(z, z, sum);
  }
  return sum;
}

template <bool WHOLE_BLOCK>
__global__ void __launch_bounds__(kUnitThreads)
    unit_kernel(const __grid_constant__ UnitArguments a) {
  __shared__ float exchange[kUnitThreads / 32];
  using Share = UnitShare<WHOLE_BLOCK>;
  const int64_t crops = a.crops.count;
#pragma unroll 1
  for (int64_t row = Share::first_row(); row < a.images * crops;
       row += int64_t(gridDim.x) * Share::kRows) {
    const int64_t image = row / crops, crop = row - image * crops;
    const UnitRow<kNumbers> z(a.crops, image, crop, a.dim, a.crops_in_vectors);
    const UnitRow<kNumbers> to(a.units, image, crop, a.dim, a.others_in_vectors);
    float held[kHeld][kNumbers];
    Share::held([&](int k, int64_t column) { z.load(column, held[k]); });
    const auto squares = [&](float factor) {
      float sum = 0;
      Share::held([&](int k, int64_t) { sum += squares_of(held[k], factor); });
      Share::beyond(a.dim, [&](int64_t column) {
        float values[kNumbers];
        z.load(column, values);
        sum += squares_of(values, factor);
      });
      return over_row<Sum, WHOLE_BLOCK>(sum, exchange);
    };
    float factor = 1, sum = squares(1);
    if (!ordinary(sum)) {  // alike in all threads of the row
      float most = 0;
      const auto look = [&](const float(&values)[kNumbers]) {
#pragma unroll
        for (int k = 0; k < kNumbers; ++k) most = fmaxf(most, fabsf(values[k]));
      };
      Share::held([&](int k, int64_t) { look(held[k]); });
      Share::beyond(a.dim, [&](int64_t column) {
        float values[kNumbers];
        z.load(column, values);
        look(values);
      });
      factor = towards_one(over_row<Largest, WHOLE_BLOCK>(most, exchange));
      sum = squares(factor);
    }
    const UnitFactors<float> of = unit_factors(factor, sum);
    const auto write = [&](int64_t column, float(&values)[kNumbers]) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) values[k] = values[k] * of.first * of.second;
      to.store(column, values);
    };
    Share::held([&](int k, int64_t column) { write(column, held[k]); });
    Share::beyond(a.dim, [&](int64_t column) {
      float values[kNumbers];
      z.load(column, values);
      write(column, values);
    });
    if (threadIdx.x % Share::kThreads == 0) {
      a.factors[2 * row] = of.first;
      a.factors[2 * row + 1] = of.second;
    }
  }
}

// (g − (g·ẑ) ẑ)/‖z‖; beyond the largest number of its dtype, that number.
template <bool WHOLE_BLOCK>
__global__ void __launch_bounds__(kUnitThreads)
    unit_backward_kernel(const __grid_constant__ UnitArguments a) {
  __shared__ float exchange[kUnitThreads / 32];
  using Share = UnitShare<WHOLE_BLOCK>;
  const int64_t crops = a.crops.count;
  const float most = float(largest(a.crops.dtype));
#pragma unroll 1
  for (int64_t row = Share::first_row(); row < a.images * crops;
       row += int64_t(gridDim.x) * Share::kRows) {
    const int64_t image = row / crops, crop = row - image * crops;
    const UnitRow<kNumbers> unit(a.units, image, crop, a.dim, a.others_in_vectors);
    const UnitRow<kNumbers> grad(a.grad, image, crop, a.dim, a.others_in_vectors);
    const UnitRow<kNumbers> to(a.crops, image, crop, a.dim, a.crops_in_vectors);
    float units[kHeld][kNumbers], grads[kHeld][kNumbers], sum = 0;
    const auto add = [&](const float(&u)[kNumbers], const float(&g)[kNumbers]) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) sum = fmaf(u[k], g[k], sum);
    };
    Share::held([&](int k, int64_t column) {
      unit.load(column, units[k]);
      grad.load(column, grads[k]);
    });
    Share::held([&](int k, int64_t) { add(units[k], grads[k]); });
    Share::beyond(a.dim, [&](int64_t column) {
      float u[kNumbers], g[kNumbers];
      unit.load(column, u);
      grad.load(column, g);
      add(u, g);
    });
    const float along = over_row<Sum, WHOLE_BLOCK>(sum, exchange);
    const float first = __ldg(a.factors + 2 * row), second = __ldg(a.factors + 2 * row + 1);
    const auto write = [&](int64_t column, const float(&u)[kNumbers], float(&g)[kNumbers]) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) {
        g[k] = clamp_keeping_nan(fmaf(-along, u[k], g[k]) * second * first, most);
      }
      to.store(column, g);
    };
    Share::held([&](int k, int64_t column) { write(column, units[k], grads[k]); });
    Share::beyond(a.dim, [&](int64_t column) {
      float u[kNumbers], g[kNumbers];
      unit.load(column, u);
      grad.load(column, g);
      write(column, u, g);
    });
  }
}

// N numbers in one access: what in_vectors tells of 16 bytes, where these may be 32.
inline bool in_accesses(const Rows& rows, const UnitProblem& p) {
  return in_vectors(rows, p.images, p.dim);
}

Status run(const char* name, const UnitProblem& p, void (*of_warp)(UnitArguments),
           void (*of_block)(UnitArguments), const Queue& queue, Failure* failure) {
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld L=%lld D=%lld %s", static_cast<long long>(p.images),
           static_cast<long long>(p.crops.count), static_cast<long long>(p.dim),
           name_of(p.crops.dtype));
  Limits limits;
  const Status entered = enter(name, shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;
  const UnitArguments arguments{p.crops, p.units, p.grad, static_cast<float*>(p.factors),
                                p.images, p.dim, in_accesses(p.crops, p),
                                in_accesses(p.units, p) &&
                                    (!p.grad.present() || in_accesses(p.grad, p))};
  const bool whole_block = p.dim > int64_t(UnitShare<false>::kThreads) * kNumbers * kHeld;
  const int64_t rows = p.images * p.crops.count;
  const int64_t at_once = whole_block ? 1 : UnitShare<false>::kRows;
  const int64_t needed = (rows + at_once - 1) / at_once;
  const int64_t most = int64_t(limits.multiprocessors) * kUnitBlocks;
  const Grid grid{unsigned(needed < most ? needed : most), kUnitThreads, 0,
                  static_cast<cudaStream_t>(queue.stream)};
  const cudaError_t error = launch(whole_block ? of_block : of_warp, grid, arguments);
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

}  // namespace

Status unit(const UnitProblem& p, const Queue& queue, Failure* failure) {
  return run("unit", p, &unit_kernel<false>, &unit_kernel<true>, queue, failure);
}

Status unit_backward(const UnitProblem& p, const Queue& queue, Failure* failure) {
  return run("unit_backward", p, &unit_backward_kernel<false>, &unit_backward_kernel<true>, queue,
             failure);
}

}  // namespace cuda
}  // namespace logo
