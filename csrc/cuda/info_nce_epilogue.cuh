// InfoNCE's last launch: from sums over the negatives to losses.
//
// Sums of the splits are added up in a fixed order. The losses of a query follow from its
// log-sum-exp and the cosines that the prologue left. The block that comes last sums losses over
// images, in a fixed order as well.
#pragma once

#include <cuda_runtime.h>

#include "cuda/info_nce_arguments.cuh"
#include "cuda/ticket.cuh"

namespace logo {
namespace cuda {

constexpr int kEpilogueThreads = 256;

// A log-sum-exp over the negatives: most/τ + rest.
struct LogSum {
  float most, rest;
};

template <class T>
__device__ __forceinline__ LogSum log_sum(float maximum, float sum) {
  return {maximum / kQueryLift<T>, logf(sum)};
}

// By all lanes of a warp: writes the mean of a query, and returns its log-sum-exp.
template <class T>
__device__ __forceinline__ LogSum combine(const InfoNCEArguments& a, int64_t query) {
  const int lane = threadIdx.x % 32;
  const int64_t splits = a.plan.splits, queries = a.count;
  const float2* const sums = a.sums + query;
  const float scale = scale_of<T>(a);
  float maximum = -INFINITY;
  for (int64_t k = lane; k < splits; k += 32) maximum = fmaxf(maximum, sums[k * queries].x);
  maximum = warp_max(maximum);
  float sum = 0;
  for (int64_t k = lane; k < splits; k += 32) {
    const float2 found = sums[k * queries];
    sum = fmaf(exp2f((found.x - maximum) * scale), found.y,
               sum);  // 0 of a part in which nothing is seen
  }
  sum = warp_sum(sum);

  const float divisor = sum * kWeightLift<T>;
#pragma unroll 1
  for (int64_t begin = 0; begin < a.plan.dim; begin += kColumnStep<4>) {
    const int64_t column = begin + first_column<4>();
    const bool inside = column < a.plan.dim;
    const float* const from = a.means + query * a.plan.dim + (inside ? column : 0);
    Word<4> mean = {};
#pragma unroll 1
    for (int64_t first = 0; first < splits; first += 32) {
      // A lane for the weight of each of 32 parts.
      const float weight = first + lane < splits
                               ? exp2f((sums[(first + lane) * queries].x - maximum) * scale)
                               : 0.0f;
      const int count = int(splits - first < 32 ? splits - first : 32);
#pragma unroll 8
      for (int k = 0; k < count; ++k) {
        const float4 v =
            *reinterpret_cast<const float4*>(from + (first + k) * queries * a.plan.dim);
        mean = fma(__shfl_sync(kAllLanes, weight, k), Word<4>{v.x, v.y, v.z, v.w}, mean);
      }
    }
    float* const to = a.mean_of(query) + column;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (column + k < a.p.dim) to[k] = mean.v[k] / divisor;
    }
  }
  return log_sum<T>(maximum, sum);
}

// By all lanes of a warp: writes a query's log-sum-exp, the losses of its pairs and how much its
// mean pulls in each; returns the sum of the losses, in units of loss_unit.
__device__ __forceinline__ float find_losses(const InfoNCEArguments& a, int64_t query,
                                             const QueryAt& at, const LogSum& lse) {
  const float tau = a.temperature(), weight = float(at.global ? a.gg_weight : a.lg_weight);
  const float unit = loss_unit(tau), rest = lse.rest * unit;
  const int64_t positives = a.p.positives.count;
  if (threadIdx.x % 32 == 0) a.lse()[query] = finite(lse.most / tau + lse.rest);
  float sum = 0;
#pragma unroll 1
  for (int64_t p = threadIdx.x % 32; p < positives; p += 32) {
    float* const pull = a.pull_of(query) + p;
    const float gap = (lse.most - *pull) * unit / tau + rest, power = expf(-fabsf(gap / unit));
    const float loss = fmaxf(gap, 0) + unit * log1pf(power);  // NaN by the second
    const bool pair = !at.global || p != at.crop;
    *pull = pair ? weight * ((gap >= 0 ? 1 : power) / (1 + power)) : 0.0f;
    if (a.p.reduction == Reduction::pairs) a.total()[query * positives + p] = finite(loss / unit);
    if (pair) sum += loss;
  }
  return warp_sum(sum);
}

// Sums of losses over the pairs of global crops, and over those of local crops, in units of
// loss_unit.
struct LossSums {
  double gg = 0, lg = 0;

  __device__ __forceinline__ void write(const InfoNCEArguments& a, int64_t at, int64_t stride) {
    const float unit = loss_unit(a.temperature());
    a.total()[at] = finite(float(a.gg_weight * gg + a.lg_weight * lg) / unit);
    if (a.terms() == nullptr) return;
    a.terms()[at] = finite(float(a.gg_mean * gg) / unit);
    a.terms()[stride + at] = finite(float(a.lg_mean * lg) / unit);
  }
};

__device__ __forceinline__ double sum_of(const float* losses, int64_t first, int64_t end,
                                         int64_t step) {
  double sum = 0;
#pragma unroll 8
  for (int64_t k = first; k < end; k += step) sum += double(__ldcg(losses + k));
  return sum;
}

// The results from the losses of all queries; by all threads of one block.
static __device__ __forceinline__ void sum_over_images(const InfoNCEArguments& a) {
  const int64_t globals = a.p.global_crops.count, locals = a.p.local_crops.count;
  const float* const of_locals = a.losses + a.p.images * globals;
  if (a.p.reduction == Reduction::none) {  // a thread for each image
#pragma unroll 1
    for (int64_t image = threadIdx.x; image < a.p.images; image += kEpilogueThreads) {
      LossSums sums;
      sums.gg = sum_of(a.losses, image * globals, (image + 1) * globals, 1);
      sums.lg = sum_of(of_locals, image * locals, (image + 1) * locals, 1);
      sums.write(a, image, a.p.images);
    }
    return;
  }
  __shared__ double found[2][kEpilogueThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const double gg = warp_sum(sum_of(a.losses, threadIdx.x, a.p.images * globals, kEpilogueThreads));
  const double lg = warp_sum(sum_of(of_locals, threadIdx.x, a.p.images * locals, kEpilogueThreads));
  if (lane == 0) {
    found[0][warp] = gg;
    found[1][warp] = lg;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  LossSums sums;
  for (int k = 0; k < kEpilogueThreads / 32; ++k) {
    sums.gg += found[0][k];
    sums.lg += found[1][k];
  }
  sums.write(a, 0, 1);
}

// A warp for each query.
template <class T>
__global__ void __launch_bounds__(kEpilogueThreads, 4)
    info_nce_epilogue_kernel(const __grid_constant__ InfoNCEArguments a) {
  const int64_t query = int64_t(blockIdx.x) * (kEpilogueThreads / 32) + int64_t(threadIdx.x / 32);
  if (query < a.count) {
    const float2 found = a.sums[query];
    const LogSum lse = a.plan.splits > 1 ? combine<T>(a, query) : log_sum<T>(found.x, found.y);
    const QueryAt at = a.at(query);
    const float losses = find_losses(a, query, at, lse);
    if (threadIdx.x % 32 == 0) {
      const int64_t globals = a.p.global_crops.count, locals = a.p.local_crops.count;
      a.losses[at.global ? at.image * globals + at.crop
                         : a.p.images * globals + at.image * locals + at.crop] = losses;
    }
  }
  __shared__ unsigned flag;
  if (a.p.reduction != Reduction::pairs && comes_last(a.finished, &flag)) sum_over_images(a);
}

}  // namespace cuda
}  // namespace logo
