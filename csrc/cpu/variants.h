// The kernels as compiled for each instruction set, for dispatch.cpp to choose from.
#pragma once

#include "cpu/parallel.h"
#include "logo/problem.h"

#define LOGO_DECLARE_VARIANT(simd)                              \
  namespace simd {                                              \
  Status cosine(const CosineProblem& problem);                  \
  Status similarity(const SimilarityProblem& problem);          \
  Status similarity_backward(const SimilarityProblem& problem); \
  }

namespace logo {
namespace cpu {
LOGO_DECLARE_VARIANT(portable)
LOGO_DECLARE_VARIANT(avx2)
LOGO_DECLARE_VARIANT(avx512)
}  // namespace cpu
}  // namespace logo
