// The kernels as compiled for each instruction set, for dispatch.cpp to choose from.
#pragma once

#include "cpu/parallel.h"
#include "logo/info_nce_problem.h"
#include "logo/pair_problem.h"
#include "logo/problem.h"

#define LOGO_DECLARE_VARIANT(simd)                               \
  namespace simd {                                               \
  Status cosine(const CosineProblem& problem);                   \
  Status similarity(const SimilarityProblem& problem);           \
  Status similarity_backward(const SimilarityProblem& problem);  \
  Status info_nce(const InfoNCEProblem& problem);                \
  Status info_nce_backward(const InfoNCEProblem& problem);       \
  Status pair_hidden_moments(const PairHiddenProblem& problem);  \
  Status pair_hidden(const PairHiddenProblem& problem);          \
  Status pair_hidden_sums(const PairHiddenProblem& problem);     \
  Status pair_hidden_backward(const PairHiddenProblem& problem); \
  Status pair_output_moments(const PairOutputProblem& problem);  \
  Status pair_output(const PairOutputProblem& problem);          \
  Status pair_output_sums(const PairOutputProblem& problem);     \
  Status pair_output_backward(const PairOutputProblem& problem); \
  Status unit(const UnitProblem& problem);                       \
  Status unit_backward(const UnitProblem& problem);              \
  }

namespace logo {
namespace cpu {
LOGO_DECLARE_VARIANT(portable)
LOGO_DECLARE_VARIANT(avx2)
LOGO_DECLARE_VARIANT(avx512)
}  // namespace cpu
}  // namespace logo
