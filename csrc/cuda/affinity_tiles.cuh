// How the affinity's kernels lay numbers over threads: a block has a tile of columns, and keeps it
// while it walks over rows of them, be they pairs, crops or images.
//
// A thread holds N numbers side by side, 16 bytes of T, or one where rows do not lie in multiples
// of 16 bytes.
#pragma once

#include <cuda_runtime.h>

#include <initializer_list>

#include "cuda/device.h"
#include "cuda/output.cuh"

namespace logo {
namespace cuda {

constexpr int kAffinityThreads = 128;
constexpr int kMostLanes = 32;  // threads along a row
// Blocks for a multiprocessor, at most: those that stream, and those whose sums are added up.
constexpr int kStreamingBlocks = 8;
constexpr int kSummingBlocks = 4;

struct AffinityGrid {
  int lanes;           // threads side by side in a row, a power of two
  int64_t tiles;       // of columns
  int64_t row_blocks;  // blocks that share the rows of a tile

  // For `items` of rows. `parts` rows of threads share an item, and a block takes as many items at
  // once as its rows allow.
  AffinityGrid(int64_t width, int numbers, int64_t items, int parts, int most,
               const Limits& limits) {
    const int64_t vectors = (width + numbers - 1) / numbers;
    lanes = 1;
    while (lanes < kMostLanes && lanes < vectors) lanes *= 2;
    tiles = (vectors + lanes - 1) / lanes;
    const int at_once = rows_at_once() / parts;
    const int64_t needed = (items + at_once - 1) / at_once;
    const int64_t allowed = int64_t(limits.multiprocessors) * most / tiles;
    row_blocks = needed < allowed ? needed : allowed > 1 ? allowed : 1;
  }

  int rows_at_once() const { return kAffinityThreads / lanes; }

  Grid grid(const Queue& queue) const {
    return {unsigned(tiles * row_blocks), kAffinityThreads, 0,
            static_cast<cudaStream_t>(queue.stream)};
  }
};

// A thread's place in the grid.
template <int N>
struct AffinityPlace {
  int64_t column;     // the first of N
  int64_t row_block;  // of this block
  int lane, row, rows;
  bool idle;  // beyond the last column; it still comes to barriers

  __device__ AffinityPlace(const AffinityGrid& grid, int64_t width) {
    row_block = blockIdx.x / unsigned(grid.tiles);
    const int64_t tile = blockIdx.x - row_block * grid.tiles;
    lane = int(threadIdx.x) % grid.lanes;
    row = int(threadIdx.x) / grid.lanes;
    rows = kAffinityThreads / grid.lanes;
    column = (tile * grid.lanes + lane) * N;
    idle = column >= width;
  }
};

// Groups of one size that are walked over by steps of one length. The host makes them: a division
// of 64 bits is a function call on the device.
struct Groups {
  int64_t size, step_groups, step_rest;
  double inverse;

  Groups(int64_t of_size, int64_t step)
      : size(of_size),
        step_groups(step / of_size),
        step_rest(step % of_size),
        inverse(1 / double(of_size)) {}
};

// Numbers first, first + step, .. as (group, within).
struct GroupWalk {
  int64_t group, within;

  __device__ GroupWalk(int64_t first, const Groups& groups) {
    group = int64_t(double(first) * groups.inverse);  // or one beside it
    within = first - group * groups.size;
    if (within < 0) {
      within += groups.size;
      --group;
    }
    wrap(groups);
  }
  __device__ __forceinline__ void next(const Groups& groups) {
    group += groups.step_groups;
    within += groups.step_rest;
    wrap(groups);
  }

 private:
  __device__ __forceinline__ void wrap(const Groups& groups) {
    if (within >= groups.size) {
      within -= groups.size;
      ++group;
    }
  }
};

// N numbers as they lie in memory.
template <class T, int N>
struct Packed {
  static_assert(N == kVector<T>);
  uint4 bits;

  __device__ __forceinline__ void load(const void* from, int64_t index) {
    bits = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(from) + index));
  }
  __device__ __forceinline__ void widen(float (&values)[N]) const {
    cuda::widen(bits, values, T());
  }
};
template <class T>
struct Packed<T, 1> {
  T value;

  __device__ __forceinline__ void load(const void* from, int64_t index) {
    if constexpr (sizeof(T) == 4) {
      value = __ldg(static_cast<const T*>(from) + index);
    } else {
      value.bits = __ldg(static_cast<const unsigned short*>(from) + index);
    }
  }
  __device__ __forceinline__ void widen(float (&values)[1]) const { values[0] = to_float(value); }
};

template <class T, int N>
__device__ __forceinline__ void load(const void* from, int64_t index, float (&values)[N]) {
  Packed<T, N> packed;
  packed.load(from, index);
  packed.widen(values);
}

template <int N>
__device__ __forceinline__ void put_floats(const float4& four, float (&values)[N], int k) {
  values[k] = four.x;
  values[k + 1] = four.y;
  values[k + 2] = four.z;
  values[k + 3] = four.w;
}

template <int N>
__device__ __forceinline__ void load_floats(const void* from, int64_t index, float (&values)[N]) {
  const float* const at = static_cast<const float*>(from) + index;
  if constexpr (N == 1) {
    values[0] = __ldg(at);
  } else {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      put_floats(__ldg(reinterpret_cast<const float4*>(at + k)), values, k);
    }
  }
}

// Of memory that this kernel may write to: __ldg reads past the coherent caches.
template <int N>
__device__ __forceinline__ void load_written_floats(const void* from, int64_t index,
                                                    float (&values)[N]) {
  const float* const at = static_cast<const float*>(from) + index;
  if constexpr (N == 1) {
    values[0] = *at;
  } else {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      put_floats(*reinterpret_cast<const float4*>(at + k), values, k);
    }
  }
}

// With no hint to the caches: the next kernel reads it. A plain assignment would come out in parts.
template <class T, int N>
__device__ __forceinline__ void store(void* to, int64_t index, const float (&values)[N]) {
  T* const at = static_cast<T*>(to) + index;
  if constexpr (N == 1) {
    from_float(values[0], at);
  } else {
    __stwb(reinterpret_cast<uint4*>(at), narrow(values, T()));
  }
}

template <int N>
__device__ __forceinline__ void store_floats(void* to, int64_t index, const float (&values)[N]) {
  float* const at = static_cast<float*>(to) + index;
  if constexpr (N == 1) {
    *at = values[0];
  } else {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      __stwb(reinterpret_cast<float4*>(at + k),
             make_float4(values[k], values[k + 1], values[k + 2], values[k + 3]));
    }
  }
}

// Batch norm of a thread's columns.
template <int N>
struct ColumnNorm {
  float mean[N], scale[N], bias[N];

  __device__ __forceinline__ void load(const void* norm, int64_t width, int64_t column) {
    load_floats(norm, column, mean);
    load_floats(norm, width + column, scale);
    load_floats(norm, 2 * width + column, bias);
  }
  // From v − mean; the same in every kernel, so that all agree on where ReLU is open.
  __device__ __forceinline__ float operator()(float centred, int k) const {
    return fmaf(centred, scale[k], bias[k]);
  }
};

// fmaxf would turn NaN into 0.
__device__ __forceinline__ float relu_keeping_nan(float x) { return x < 0 ? 0.0f : x; }

// N numbers of T in a thread.
template <class T_, int N_>
struct Numbers {
  using T = T_;
  static constexpr int N = N_;
};

// Whether threads may hold 16 bytes each: rows of `width` numbers in all of these arrays begin at
// multiples of 16 bytes.
inline bool in_vectors(int64_t width, DType dtype, std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % 16 != 0) return false;
  }
  return width * dtype_bytes(dtype) % 16 == 0;
}

// Calls run(Numbers<T, N>()).
template <class Run>
cudaError_t with_numbers(DType dtype, bool vectors, Run run) {
  switch (dtype) {
    case DType::bf16: return vectors ? run(Numbers<bf16, 8>()) : run(Numbers<bf16, 1>());
    case DType::f16: return vectors ? run(Numbers<f16, 8>()) : run(Numbers<f16, 1>());
    default: return vectors ? run(Numbers<float, 4>()) : run(Numbers<float, 1>());
  }
}

// Enters, and launches by run(Numbers<T, N>, limits).
template <class Run>
Status run_affinity(const char* name, const char* shape, DType dtype, bool vectors,
                    const Queue& queue, Failure* failure, const Run& run) {
  Limits limits;
  const Status entered = enter(name, shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;
  const cudaError_t error =
      with_numbers(dtype, vectors, [&](auto numbers) { return run(numbers, limits); });
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
