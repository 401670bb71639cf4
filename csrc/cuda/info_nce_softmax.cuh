// From scores to the weights of the mean, in registers.
#pragma once

#include <cuda_runtime.h>

#include "cuda/info_nce_arguments.cuh"
#include "cuda/warp.cuh"

namespace logo {
namespace cuda {

// 2^x, and zero below 2^-126.
__device__ __forceinline__ float exp2_approximately(float x) {
#if defined(LOGO_EMULATED)
  return exp2f(x);
#else
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#endif
}

// Which negatives a query sees. Where some query of the block does not see all of a tile, each is
// looked at.
class Visibility {
 public:
  __device__ Visibility(const InfoNCEArguments& arguments, int64_t first_query) : a_(arguments) {
    if (a_.own_queries == 0) return;
    const int64_t end = min((long long)(first_query + a_.plan.rows), (long long)a_.count);
    own_first_ = first_query / a_.own_queries * a_.own_negatives;
    own_end_ = ((end - 1) / a_.own_queries + 1) * a_.own_negatives;
  }

  // Whether each query sees all of these negatives.
  __device__ bool all(int64_t first, int count) const {
    return first + count <= a_.negatives.count &&
           (first >= own_end_ || first + count <= own_first_);
  }
  __device__ int64_t own_of(int64_t query) const {
    return a_.own_queries == 0 ? 0 : query / a_.own_queries * a_.own_negatives;
  }
  __device__ bool one(int64_t own, int64_t negative) const {
    return negative < a_.negatives.count &&
           (a_.own_queries == 0 || negative < own || negative >= own + a_.own_negatives);
  }

 private:
  const InfoNCEArguments& a_;
  int64_t own_first_ = 0, own_end_ = 0;
};

// The softmax of a lane's queries: rows `group` and group + 8 of each of M times 16. Scores are
// cosines, times kQueryLift; exponents, of two, are scores times `scale`.
//
// running: the maximum so far is subtracted; logo/running_maximum.h says where. Of scores, before
// they are multiplied: a product's last digit may be more than one, or the product infinite.
template <int M>
struct Softmax {
  float maximum[M][2], sum[M][2];  // a lane's own part of the sum

  __device__ explicit Softmax(bool running) {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        maximum[m][side] = running ? -INFINITY : 0.0f;
        sum[m][side] = 0;
      }
    }
  }

  // Cosines, in place, of the TILE negatives from `first` on; -inf where one is not seen.
  template <int TILE>
  static __device__ __forceinline__ void cosines(float (&scores)[M][TILE / 8][4],
                                                 const float* inverse, const Visibility& visible,
                                                 int64_t query, int64_t first) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
      const float2 norms = *reinterpret_cast<const float2*>(inverse + 8 * j + 2 * t);
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int k = 0; k < 4; ++k) scores[m][j][k] *= k % 2 == 0 ? norms.x : norms.y;
      }
    }
    if (visible.all(first, TILE)) return;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const int64_t own = visible.own_of(query + 16 * m + 8 * side);
#pragma unroll
        for (int j = 0; j < TILE / 8; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (!visible.one(own, first + 8 * j + 2 * t + k)) {
              scores[m][j][2 * side + k] = -INFINITY;
            }
          }
        }
      }
    }
  }

  // Takes the maxima of a tile in, and subtracts them; `means` and sums are brought to them.
  template <int BLOCKS, int COLUMN_BLOCKS>
  __device__ __forceinline__ void raise(float (&scores)[M][BLOCKS][4], float scale,
                                        float (&means)[M][COLUMN_BLOCKS][4]) {
    float change[M][2];
    bool changed = false;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float most = -INFINITY;
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
          most = fmaxf(most, fmaxf(scores[m][j][2 * side], scores[m][j][2 * side + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
        most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
        const float before = maximum[m][side], now = fmaxf(before, most);
        // Before the first negative that is seen there is nothing to bring to the new maximum.
        change[m][side] = before == -INFINITY ? 0.0f : exp2_approximately((before - now) * scale);
        changed |= before != now;
        maximum[m][side] = now;
        sum[m][side] *= change[m][side];
        // Where nothing has been seen yet, all scores are -inf, and so is the maximum.
        const float offset = now == -INFINITY ? 0.0f : now;
#pragma unroll
        for (int j = 0; j < BLOCKS; ++j) {
          scores[m][j][2 * side] -= offset;
          scores[m][j][2 * side + 1] -= offset;
        }
      }
    }
    if (!__any_sync(kAllLanes, changed)) return;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) means[m][j][k] *= change[m][k / 2];
      }
    }
  }

  // Weights p/‖n‖ in the place of scores, `lift` times.
  template <int TILE>
  __device__ __forceinline__ void weigh(float (&scores)[M][TILE / 8][4], const float* inverse,
                                        float scale, float lift) {
    const int t = threadIdx.x % 4;
    float part[M][2] = {};  // a tile's own, so that a long sum loses less
#pragma unroll
    for (int j = 0; j < TILE / 8; ++j) {
      const float2 norms = *reinterpret_cast<const float2*>(inverse + 8 * j + 2 * t);
      const float lifted[2] = {norms.x * lift, norms.y * lift};
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float power = exp2_approximately(scores[m][j][k] * scale);
          part[m][k / 2] += power;
          scores[m][j][k] = power * lifted[k % 2];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) sum[m][side] += part[m][side];
    }
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        sum[m][side] += __shfl_xor_sync(kAllLanes, sum[m][side], 1);
        sum[m][side] += __shfl_xor_sync(kAllLanes, sum[m][side], 2);
      }
    }
  }
};

}  // namespace cuda
}  // namespace logo
