// What InfoNCE's kernels are given, and the formats of their operands.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/info_nce_plan.h"
#include "logo/dtypes.h"

namespace logo {
namespace cuda {

struct InfoNCEArguments {
  InfoNCEPlan plan;
  Rows queries, negatives;
  int64_t dim;
  bool as_is;    // negatives can be copied 16 bytes at a time
  bool running;  // maximum: where sums of powers of two could leave fp32
  float scale;   // from scores to exponents of two: log2(e) / τ / kQueryLift
  int64_t own_queries, own_negatives;
  float* inverse;           // [tiles · tile], as encode_inverse says
  unsigned char* prepared;  // [query_tiles · rows, planes, plan.dim] operands
  float2* sums;             // [splits, N]: maximum, sum
  float* means;             // [splits, N, plan.dim]
  float* lse;
  float* mean;
};

// What the tensor cores take: fp32 goes through them as bf16 parts.
template <class T>
using Half = std::conditional_t<std::is_same_v<T, float>, bf16, T>;

// Parts of 16 bits that make up a query or a weight where fp32 is owed.
template <class T>
constexpr int kExactParts = std::is_same_v<T, f16> ? 2 : 3;

// fp16 has few exponents. Unit queries and weights are multiplied by these, so that what counts of
// them, parts included, stays clear of its smallest numbers.
template <class T>
constexpr float kQueryLift = std::is_same_v<T, f16> ? 64.0f : 1.0f;
template <class T>
constexpr float kWeightLift = std::is_same_v<T, f16> ? 4096.0f : 1.0f;

}  // namespace cuda
}  // namespace logo
