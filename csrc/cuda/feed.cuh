// A ring of stages in shared memory, filled ahead of their use by asynchronous copies.
//
// A block asks for chunks of images in the order of their use (issue), takes the oldest (next), and
// gives it back (release). All threads call all three together.
//
// Rows that can be copied as they are travel by bulk copies, one instruction a row, where the
// hardware has them (sm_90 and newer), else by 16-byte cp.async. Other rows, of another dtype or
// misaligned or strided over D, are read and converted by all threads, one element at a time.
#pragma once

#include <cuda_runtime.h>

#include "cuda/copy.cuh"
#include "cuda/image_plan.h"
#include "cuda/input.cuh"
#include "cuda/stage.cuh"

namespace logo {
namespace cuda {

template <class T>
class Feed {
 public:
  // arrivals: [stages] in shared memory.
  __device__ Feed(const Input& input, const ImagePlan& plan, unsigned char* stages,
                  Arrivals* arrivals)
      : input_(input), plan_(plan), stages_(stages), arrivals_(arrivals) {
    bulk_ = has_bulk_copies() && input.as_is;
    if (bulk_) {
      if (threadIdx.x == 0) {
        for (int k = 0; k < plan.stages; ++k) arrivals_init(arrivals + k, 1);
        arrivals_fence_init();
      }
      __syncthreads();
    }
  }

  __device__ bool has_room() const { return outstanding_ < plan_.stages; }

  // Starts to fetch columns chunk · plan.chunk .. of all rows of the image.
  __device__ void issue(int64_t image, int64_t chunk) {
    const int64_t first = chunk * plan_.chunk;
    const int columns = columns_of(chunk);
    unsigned char* const stage = stages_ + into_ * plan_.stage_bytes;
    if (bulk_) {
      bulk_rows(stage, arrivals_ + into_, image, first, columns);
    } else {
      if (!has_bulk_copies() && input_.as_is) {
        copy_rows(stage, image, first, columns);
      } else {
        convert_rows(stage, image, first, columns);
      }
      copy_commit();
    }
    into_ = into_ + 1 == plan_.stages ? 0 : into_ + 1;
    ++outstanding_;
  }

  // Waits for the oldest stage asked for, which holds this chunk.
  __device__ Stage<T> next(int64_t chunk) {
    if (bulk_) {
      arrivals_wait(arrivals_ + from_, parity_);
    } else {
      copy_wait(outstanding_ - 1);
      __syncthreads();  // everybody's copies, not this thread's alone
    }
    return {stages_ + from_ * plan_.stage_bytes, plan_.pitch, columns_of(chunk)};
  }

  // Gives back the stage taken last, which nobody reads any more.
  __device__ void release() {
    __syncthreads();
    if (++from_ == plan_.stages) {
      from_ = 0;
      parity_ ^= 1;
    }
    --outstanding_;
  }

  // Waits for all stages asked for, and gives them back.
  __device__ void drain() {
    while (outstanding_ > 0) {
      next(0);
      release();
    }
  }

 private:
  __device__ int columns_of(int64_t chunk) const {
    const int64_t left = input_.dim - chunk * plan_.chunk;
    return int(left < plan_.chunk ? left : plan_.chunk);
  }

  __device__ void bulk_rows(unsigned char* stage, Arrivals* arrivals, int64_t image, int64_t first,
                            int columns) {
    if (threadIdx.x >= 32) return;
    const uint32_t bytes = uint32_t(columns) * sizeof(T);
    if (threadIdx.x == 0) arrivals_expect(arrivals, bytes * input_.rows);
    __syncwarp();
#pragma unroll 1
    for (int row = threadIdx.x; row < input_.rows; row += 32) {
      const char* const from = row_at(input_, image, row).address + first * int64_t(sizeof(T));
      copy_bulk(stage + row * plan_.pitch, from, bytes, arrivals);
    }
  }

  __device__ void copy_rows(unsigned char* stage, int64_t image, int64_t first, int columns) {
    const int vectors = columns / kVector<T>;
#pragma unroll 1
    for (int row = 0; row < input_.rows; ++row) {
      const char* const from = row_at(input_, image, row).address + first * int64_t(sizeof(T));
      unsigned char* const to = stage + row * plan_.pitch;
#pragma unroll 2
      for (int k = threadIdx.x; k < vectors; k += blockDim.x) {
        copy_async_16(to + k * 16, from + k * 16);
      }
    }
  }

  __device__ void convert_rows(unsigned char* stage, int64_t image, int64_t first, int columns) {
    const int padded = (columns + kVector<T> - 1) / kVector<T> * kVector<T>;
#pragma unroll 1
    for (int row = 0; row < input_.rows; ++row) {
      const RowAt from = row_at(input_, image, row);
      T* const to = reinterpret_cast<T*>(stage + row * plan_.pitch);
#pragma unroll 1
      for (int k = threadIdx.x; k < padded; k += blockDim.x) {
        // Where the dtypes are one, the conversion there and back changes nothing.
        from_float(k < columns ? read_element(from, first + k) : 0.0f, to + k);
      }
    }
  }

  const Input& input_;
  const ImagePlan& plan_;
  unsigned char* stages_;
  Arrivals* arrivals_;
  bool bulk_;
  int into_ = 0, from_ = 0, outstanding_ = 0;
  uint32_t parity_ = 0;
};

}  // namespace cuda
}  // namespace logo
