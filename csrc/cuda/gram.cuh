// The Gram matrix of an image's rows, in shared memory: all inner products of two rows, in fp32.
//
// Tiles on and below the diagonal are dealt to the warps. Where there are fewer tiles than warps, D
// is cut into slices, each with a matrix of its own, which sum_slices adds up in order. Chunks of D
// that come one after another are added in place: an element belongs to one thread.
#pragma once

#include <cuda_runtime.h>

#include "cuda/image_plan.h"
#include "cuda/mma.cuh"
#include "cuda/stage.cuh"
#include "cuda/warp.cuh"

namespace logo {
namespace cuda {

struct Gram {
  float* data;  // [slices, padded, pitch]
  int rows, padded, pitch, slices;

  __device__ Gram(float* at, int row_count, const ImagePlan& plan)
      : data(at),
        rows(row_count),
        padded(plan.gram_rows),
        pitch(gram_pitch(plan.gram_rows)),
        slices(plan.slices) {}

  __device__ __forceinline__ float* slice(int index) const { return data + index * padded * pitch; }
  __device__ __forceinline__ float* row(int index) const { return data + index * pitch; }
  __device__ __forceinline__ float operator()(int i, int j) const { return data[i * pitch + j]; }
};

__device__ __forceinline__ void put(float* to, float value, bool add) {
  *to = add ? *to + value : value;
}

// Tile `index` of a triangle, in the order (0,0) (1,0) (1,1) (2,0) ..
struct TileAt {
  int i, j;
  __device__ explicit TileAt(int index) : i(0) {
#pragma unroll 1
    while (triangle(i + 1) <= index) ++i;
    j = index - triangle(i);
  }
};

// A warp's part of the work: tiles first, first + step .. of the triangle, in one slice of D.
struct WarpShare {
  int slice, slices, first, step;
  bool idle;
  __device__ explicit WarpShare(int slice_count) : slices(slice_count) {
    const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    step = warps / slices;
    slice = warp % slices;
    first = warp / slices;
    idle = first >= step;  // a warp beyond the last whole set of slices
  }
};

// fp32 fused multiply-adds, 4 × 4 rows to a warp, its lanes over D. SCALED: rows times factor.
template <bool SCALED, class T>
__device__ void multiply_rows(const Stage<T>& stage, const Gram& gram, const float* factor,
                              bool add) {
  const WarpShare share(gram.slices);
  if (share.idle) return;
  const int lane = threadIdx.x % 32;
  const int tiles = triangle((gram.rows + 3) / 4);
  const int quads = stage.quads();
#pragma unroll 1
  for (int tile = share.first; tile < tiles; tile += share.step) {
    const TileAt at(tile);
    int rows_i[4], rows_j[4];
    float factor_i[4], factor_j[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // beyond the last row: that row again, not stored
      rows_i[k] = min(4 * at.i + k, gram.rows - 1);
      rows_j[k] = min(4 * at.j + k, gram.rows - 1);
      factor_i[k] = SCALED ? factor[rows_i[k]] : 1.0f;
      factor_j[k] = SCALED ? factor[rows_j[k]] : 1.0f;
    }
    float sums[16] = {};
#pragma unroll 1
    for (int quad = share.slice * 32 + lane; quad < quads; quad += share.slices * 32) {
      float4 left[4], right[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        left[k] = load_quad(stage, rows_i[k], quad);
        right[k] = load_quad(stage, rows_j[k], quad);
        if (SCALED) {
          left[k].x *= factor_i[k], left[k].y *= factor_i[k];
          left[k].z *= factor_i[k], left[k].w *= factor_i[k];
          right[k].x *= factor_j[k], right[k].y *= factor_j[k];
          right[k].z *= factor_j[k], right[k].w *= factor_j[k];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float& sum = sums[4 * i + j];
          sum = fmaf(left[i].x, right[j].x, sum);
          sum = fmaf(left[i].y, right[j].y, sum);
          sum = fmaf(left[i].z, right[j].z, sum);
          sum = fmaf(left[i].w, right[j].w, sum);
        }
      }
    }
    const float sum = warp_sums_of_16(sums);
    const int i = 4 * at.i + lane / 8, j = 4 * at.j + lane / 2 % 4;
    if (lane % 2 == 0 && i < gram.rows && j < gram.rows) {
      float* const matrix = gram.slice(share.slice);
      put(matrix + i * gram.pitch + j, sum, add);
      if (at.i != at.j) put(matrix + j * gram.pitch + i, sum, add);
    }
  }
}

// A tile of 16 × 16 products on the tensor cores: sixteen columns of D, two vectors, at a time.
template <class Half>
struct TileOfProducts {
  float low[4] = {}, high[4] = {};  // columns 0..7 and 8..15 of the tile

  // i, j: the vector that this lane loads of the rows of the tile, and of its columns. HALF: the
  // second of the two vectors does not exist.
  template <bool HALF>
  __device__ __forceinline__ void add(const unsigned char* i, const unsigned char* j) {
    uint32_t a[4], b[4];
    load_matrices<false>(a, i);
    load_matrices<false>(b, j);
    if (HALF) a[2] = a[3] = b[1] = b[3] = 0;
    mma_m16n8k16<Half>(low, a, {b[0], b[1]});
    mma_m16n8k16<Half>(high, a, {b[2], b[3]});
  }
};

// Tensor cores, 16 × 16 rows to a warp.
template <class Half>
__device__ void multiply_rows_on_tensor_cores(const Stage<Half>& stage, const Gram& gram,
                                              bool add) {
  const WarpShare share(gram.slices);
  if (share.idle) return;
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const int tiles = triangle(gram.padded / 16), pairs = stage.vectors() / 2;
  const bool odd = stage.vectors() % 2 != 0;
#pragma unroll 1
  for (int tile = share.first; tile < tiles; tile += share.step) {
    const TileAt at(tile);
    // An operand has four blocks of 8 rows and 8 columns, and a lane loads a row of block lane / 8.
    // Beyond the last row: that row again; nobody reads its products.
    const auto row = [&](int first, bool below) {
      return stage.row(min(16 * first + lane % 8 + (below ? 8 : 0), gram.rows - 1));
    };
    const bool second = lane & 8, third = lane & 16;
    const unsigned char* i = row(at.i, second);
    const unsigned char* j = row(at.j, third);
    TileOfProducts<Half> sums[2];  // by turns, so that neither waits for the other
    if (odd && share.slice == 0) {
      sums[1].template add<true>(i + pairs * 32, j + pairs * 32);
    }
    i += third ? 16 : 0;
    j += second ? 16 : 0;
    int pair = share.slice;
#pragma unroll 2
    for (; pair + share.slices < pairs; pair += 2 * share.slices) {
      sums[0].template add<false>(i + pair * 32, j + pair * 32);
      const int next = pair + share.slices;
      sums[1].template add<false>(i + next * 32, j + next * 32);
    }
    if (pair < pairs) sums[0].template add<false>(i + pair * 32, j + pair * 32);
    float* const matrix = gram.slice(share.slice);
#pragma unroll
    for (int k = 0; k < 4; ++k) {  // sums 0, 1: row `group`; 2, 3: row group + 8
      const int to = 16 * at.i + group + k / 2 * 8, column = 16 * at.j + 2 * member + k % 2;
      const float left = sums[0].low[k] + sums[1].low[k];
      const float right = sums[0].high[k] + sums[1].high[k];
      put(matrix + to * gram.pitch + column, left, add);
      put(matrix + to * gram.pitch + column + 8, right, add);
      if (at.i != at.j) {
        put(matrix + column * gram.pitch + to, left, add);
        put(matrix + (column + 8) * gram.pitch + to, right, add);
      }
    }
  }
}

__device__ __forceinline__ void form_gram(const Stage<float>& stage, const Gram& gram, bool add) {
  multiply_rows<false>(stage, gram, nullptr, add);
}
template <class Half>
__device__ __forceinline__ void form_gram(const Stage<Half>& stage, const Gram& gram, bool add) {
  multiply_rows_on_tensor_cores(stage, gram, add);
}

// All slices into the first. Between barriers of the caller.
__device__ __forceinline__ void sum_slices(const Gram& gram) {
  if (gram.slices == 1) return;
#pragma unroll 1
  for (int index = threadIdx.x; index < gram.rows * gram.pitch; index += blockDim.x) {
    float sum = gram.data[index];
#pragma unroll 4
    for (int k = 1; k < gram.slices; ++k) sum += gram.slice(k)[index];
    gram.data[index] = sum;
  }
}

}  // namespace cuda
}  // namespace logo
