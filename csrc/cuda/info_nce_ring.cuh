// InfoNCE's ring of stages in shared memory, filled by cp.async ahead of their use.
//
// A stage holds a chunk of the columns of a tile of negatives, their inverse norms, and, where D
// has several chunks, the same columns of the block's queries; else those are loaded once. Columns
// up to the next multiple of 16, and negatives beyond the last, are zeros.
#pragma once

#include <cuda_runtime.h>

#include "cuda/copy.cuh"
#include "cuda/info_nce_arguments.cuh"
#include "cuda/info_nce_norms.cuh"

namespace logo {
namespace cuda {

template <class T, int TILE>
class InfoNCERing {
 public:
  static_assert(TILE <= 32);

  // Tiles first .. end − 1, and of each all chunks, the last of them own_chunk.
  __device__ InfoNCERing(const InfoNCEArguments& arguments, unsigned char* shared,
                         int64_t query_tile, int own_chunk, int64_t first, int64_t end)
      : a_(arguments),
        queries_(shared),
        stages_(shared + (arguments.plan.chunks > 1 ? 0 : arguments.plan.query_bytes)),
        query_tile_(query_tile),
        chunk_(next_chunk(own_chunk)),
        own_chunk_(own_chunk),
        tile_(first),
        end_(end) {
    if (a_.plan.chunks == 1) copy_queries(queries_, 0, columns_of(0));
#pragma unroll 1
    for (int k = 1; k < a_.plan.stages; ++k) issue();
  }

  // Waits for the oldest stage; the one before it is not read any more, and is filled again.
  __device__ void next() {
    copy_wait(a_.plan.stages - 2);
    __syncthreads();
    current_ = stages_ + from_ * a_.plan.stage_bytes;
    from_ = from_ + 1 == a_.plan.stages ? 0 : from_ + 1;
    issue();
    rescale();
  }

  __device__ const unsigned char* negatives() const { return current_; }
  __device__ const float* inverse() const { return inverse_of(current_); }
  __device__ const unsigned char* queries() const {
    return a_.plan.chunks > 1 ? current_ + TILE * (a_.plan.pitch + 4) : queries_;
  }

  __device__ int columns_of(int chunk) const {
    const int64_t left = a_.plan.dim - int64_t(chunk) * a_.plan.chunk;
    return int(left < a_.plan.chunk ? left : a_.plan.chunk);
  }
  __device__ int next_chunk(int chunk) const { return chunk + 1 == a_.plan.chunks ? 0 : chunk + 1; }

 private:
  // Sixteen threads to a row: 256 bytes at once.
  static constexpr int kAcross = 16;

  __device__ float* inverse_of(unsigned char* stage) const {
    return reinterpret_cast<float*>(stage + TILE * a_.plan.pitch);
  }

  // Starts a group of copies, empty after the last chunk: `next` counts groups.
  __device__ void issue() {
    if (tile_ < end_) {
      unsigned char* const stage = stages_ + into_ * a_.plan.stage_bytes;
      const int columns = columns_of(chunk_);
      if (a_.negatives.as_is) {
        copy_negatives(stage, columns);
      } else {
        read_negatives(stage, columns);
      }
      if (threadIdx.x < TILE / 4) {
        copy_async_16(inverse_of(stage) + 4 * threadIdx.x,
                      a_.inverse + tile_ * TILE + 4 * threadIdx.x);
      }
      if (a_.plan.chunks > 1) {
        copy_queries(stage + TILE * (a_.plan.pitch + 4), int64_t(chunk_) * a_.plan.chunk, columns);
      }
      if (chunk_ == own_chunk_) ++tile_;
      chunk_ = next_chunk(chunk_);
      into_ = into_ + 1 == a_.plan.stages ? 0 : into_ + 1;
    }
    copy_commit();
  }

  __device__ void copy_queries(unsigned char* to, int64_t first, int columns) {
    const int rows = a_.plan.rows * a_.plan.planes;
    const int64_t bytes = a_.plan.dim * int64_t(sizeof(T));
    const unsigned char* const from =
        a_.prepared + query_tile_ * rows * bytes + first * int64_t(sizeof(T));
    // A query's planes follow each other in memory; here each plane has its rows together.
#pragma unroll 1
    for (int row = threadIdx.x / kAcross; row < rows; row += kInfoNCEThreads / kAcross) {
      const int query = row % a_.plan.rows, plane = row / a_.plan.rows;
#pragma unroll 1
      for (int k = threadIdx.x % kAcross; k < columns / kVector<T>; k += kAcross) {
        copy_async_16(to + row * a_.plan.pitch + k * 16,
                      from + (query * a_.plan.planes + plane) * bytes + k * 16);
      }
    }
  }

  __device__ void copy_negatives(unsigned char* stage, int columns) {
    const int64_t first = int64_t(chunk_) * a_.plan.chunk;
    const int64_t left = (a_.p.dim - first) / kVector<T>;
#pragma unroll 2
    for (int row = threadIdx.x / kAcross; row < TILE; row += kInfoNCEThreads / kAcross) {
      const int64_t negative = tile_ * TILE + row;
      const bool there = negative < a_.negatives.count;
      const char* const from =
          a_.negatives.address(there ? negative : 0) + first * int64_t(sizeof(T));
      unsigned char* const to = stage + row * a_.plan.pitch;
#pragma unroll 1
      for (int k = threadIdx.x % kAcross; k < columns / kVector<T>; k += kAcross) {
        if (there && k < left) {
          copy_async_16(to + k * 16, from + k * 16);
        } else {
          *reinterpret_cast<uint4*>(to + k * 16) = make_uint4(0, 0, 0, 0);
        }
      }
    }
  }

  __device__ void read_negatives(unsigned char* stage, int columns) {
    const int64_t first = int64_t(chunk_) * a_.plan.chunk,
                  stride = a_.negatives.rows.element_stride;
#pragma unroll 1
    for (int row = threadIdx.x / kAcross; row < TILE; row += kInfoNCEThreads / kAcross) {
      const int64_t negative = tile_ * TILE + row;
      const bool there = negative < a_.negatives.count;
      const T* const from = reinterpret_cast<const T*>(a_.negatives.address(there ? negative : 0));
      T* const to = reinterpret_cast<T*>(stage + row * a_.plan.pitch);
#pragma unroll 2
      for (int k = threadIdx.x % kAcross; k < columns; k += kAcross) {
        to[k] = there && first + k < a_.p.dim ? from[(first + k) * stride] : T();
      }
    }
  }

  // Rows out of range, where the stage has one. All warps see the same inverse norms, so that all
  // come to the barriers or none does.
  __device__ void rescale() {
    float* const inverse = inverse_of(current_);
    const int lane = threadIdx.x % 32;
    if (!__any_sync(kAllLanes, lane < TILE && inverse[lane % TILE] < 0)) return;
    __syncthreads();
#pragma unroll 1
    for (int row = threadIdx.x / 32; row < TILE; row += kInfoNCEThreads / 32) {
      const float kept = inverse[row];
      __syncwarp();
      if (!(kept < 0)) continue;
      const Rescaled scaled = decode_inverse<T>(kept);
      T* const at = reinterpret_cast<T*>(current_ + row * a_.plan.pitch);
#pragma unroll 1
      for (int k = lane; k < a_.plan.chunk; k += 32) {
        from_float(to_float(at[k]) * scaled.factor, at + k);
      }
      if (lane == 0) inverse[row] = scaled.inverse;
    }
    __syncthreads();
  }

  const InfoNCEArguments& a_;
  unsigned char* queries_;
  unsigned char* stages_;
  unsigned char* current_ = nullptr;
  int64_t query_tile_;
  int chunk_, own_chunk_;  // the chunk to issue next; the last one of each tile
  int64_t tile_, end_;
  int into_ = 0, from_ = 0;
};

}  // namespace cuda
}  // namespace logo
