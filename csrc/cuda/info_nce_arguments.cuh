// The arguments of InfoNCE's kernels, and the formats of their operands.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/info_nce_plan.h"
#include "cuda/info_nce_rows.cuh"
#include "cuda/info_nce_temperature.cuh"
#include "logo/dtypes.h"
#include "logo/problem.h"

namespace logo {
namespace cuda {

constexpr float kLn2 = 0.693147180559945309f, kLog2e = 1.44269504088896341f;

// Negative k is crop k % P of image k / P, as in flattened positives.
struct Negatives {
  Rows rows;
  int64_t count = 0;
  bool as_is = false;     // can be copied 16 bytes at a time
  bool one_image = true;  // all are crops of one
  Divider per_image;

  Negatives() = default;
  // A queue: rows of one image.
  Negatives(const Rows& of, int64_t dim)
      : rows(of), count(of.count), as_is(in_vectors(of, 1, dim)) {}
  // All crops of all images.
  Negatives(const Rows& of, int64_t images, int64_t dim)
      : rows(of), count(images * of.count), as_is(in_vectors(of, images, dim)) {
    if (of.count == 1) {
      rows.crop_stride = of.image_stride;
    } else if (of.image_stride != of.count * of.crop_stride) {
      one_image = false;
      per_image = Divider(of.count);
    }
  }

  __device__ __forceinline__ const char* address(int64_t negative) const {
    if (one_image) return row_address(rows, 0, negative);
    const int64_t image = per_image.quotient(negative);
    return row_address(rows, image, negative - image * per_image.by);
  }
  __device__ __forceinline__ RowAt row(int64_t negative) const {
    return {address(negative), rows.dtype, rows.element_stride};
  }
};

struct InfoNCEArguments : OfQueries {
  InfoNCEPlan plan;
  bool in_quads;  // queries and positives
  Negatives negatives;
  bool running;  // maximum: where sums of powers of two could leave fp32
  float tau;     // p.temperature
  float scale;   // from scores to exponents of two: log2(e) / τ / kQueryLift
  // Weights of the sum of a kind's losses, in the total and in its term; an image's share is in
  // both.
  double gg_weight, lg_weight, gg_mean, lg_mean;
  // In-batch: query n does not see negatives k with k / own_negatives == n / own_queries. 0: it
  // sees all.
  int64_t own_queries, own_negatives;
  float* inverse;           // [tiles · tile], as encode_inverse says
  unsigned char* prepared;  // [query_tiles · rows, planes, plan.dim] operands
  unsigned* finished;       // blocks of the epilogue
  float* losses;            // [B, G], then [B, L]: sums over a query's pairs
  float2* sums;             // [splits, N]: maximum of scores, sum
  float* means;             // [splits, N, plan.dim]

  explicit InfoNCEArguments(const InfoNCEProblem& problem) : OfQueries(problem) {}

  __device__ __forceinline__ float temperature() const {
    return p.temperature_tensor == nullptr ? tau : temperature_in_memory();
  }
  __device__ __forceinline__ float* total() const { return static_cast<float*>(p.total); }
  __device__ __forceinline__ float* terms() const { return static_cast<float*>(p.terms); }
  __device__ __forceinline__ float* lse() const { return static_cast<float*>(p.lse); }
  // The numbers of a query's pairs, [P]; from prologue to epilogue their cosines.
  __device__ __forceinline__ float* pull_of(int64_t query) const {
    return static_cast<float*>(p.pull.data) + query * p.positives.count;
  }
  __device__ __forceinline__ float* mean_of(int64_t query) const {
    return static_cast<float*>(p.mean.data) + query * p.dim;
  }
};

// The tensor cores' operands: fp32 goes through them as bf16 parts.
template <class T>
using Half = std::conditional_t<std::is_same_v<T, float>, bf16, T>;

// Parts of 16 bits that make up a query or a weight where fp32 is owed.
template <class T>
constexpr int kExactParts = std::is_same_v<T, f16> ? 2 : 3;

// fp16 has few exponents. Unit queries and weights are multiplied by these factors, so that all
// their parts that count stay clear of its smallest numbers.
template <class T>
constexpr float kQueryLift = std::is_same_v<T, f16> ? 64.0f : 1.0f;
template <class T>
constexpr float kWeightLift = std::is_same_v<T, f16> ? 4096.0f : 1.0f;

// From scores' differences to exponents of two.
template <class T>
__device__ __forceinline__ float scale_of(const InfoNCEArguments& a) {
  if (a.p.temperature_tensor == nullptr) return a.scale;
  return steepness(kLog2e / kQueryLift<T> / a.temperature());
}

}  // namespace cuda
}  // namespace logo
