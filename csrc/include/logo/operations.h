// The whole C++ interface. Launchers take addresses and sizes and return a status; none throws.
#pragma once

#include "logo/problem.h"

namespace logo {

// The launchers that both halves have, once: LAUNCHER(name, its problem).
#define LOGO_LAUNCHERS(LAUNCHER)                            \
  LAUNCHER(cosine, CosineProblem)                           \
  LAUNCHER(similarity, SimilarityProblem)                   \
  LAUNCHER(similarity_backward, SimilarityProblem)          \
  LAUNCHER(info_nce, InfoNCEProblem)                        \
  LAUNCHER(info_nce_backward, InfoNCEProblem)               \
  LAUNCHER(affinity_hidden_moments, AffinityHiddenProblem)  \
  LAUNCHER(affinity_hidden, AffinityHiddenProblem)          \
  LAUNCHER(affinity_hidden_sums, AffinityHiddenProblem)     \
  LAUNCHER(affinity_hidden_backward, AffinityHiddenProblem) \
  LAUNCHER(affinity_output_moments, AffinityOutputProblem)  \
  LAUNCHER(affinity_output, AffinityOutputProblem)          \
  LAUNCHER(affinity_output_sums, AffinityOutputProblem)     \
  LAUNCHER(affinity_output_backward, AffinityOutputProblem) \
  LAUNCHER(unit, UnitProblem)                               \
  LAUNCHER(unit_backward, UnitProblem)

// Launchers that are two of those in turn, and by which of the functions below.
#define LOGO_COMPOSITES(COMPOSITE)                                                        \
  COMPOSITE(affinity_hidden_layer, AffinityHiddenProblem, layer, affinity_hidden_moments, \
            affinity_hidden)                                                              \
  COMPOSITE(affinity_hidden_gradient, AffinityHiddenProblem, hidden_gradient,             \
            affinity_hidden_sums, affinity_hidden_backward)                               \
  COMPOSITE(affinity_output_layer, AffinityOutputProblem, layer, affinity_output_moments, \
            affinity_output)                                                              \
  COMPOSITE(affinity_output_gradient, AffinityOutputProblem, output_gradient,             \
            affinity_output_sums, affinity_output_backward)

// Two launchers in turn, mostly a batch norm's moments and its layer.
template <class Launcher, class Problem, class... Where>
Status layer(Launcher moments, Launcher forward, const Problem& problem, const Where&... where) {
  const Status status = moments(problem, where...);
  return status == Status::ok ? forward(problem, where...) : status;
}

// The correction is the first rows of the facts. Where there is no scratch, the sums take the place
// of the gradients that follow from them, number by number.
template <class Launcher, class... Where>
Status hidden_gradient(Launcher sums, Launcher backward, AffinityHiddenProblem problem,
                       const Where&... where) {
  problem.correction = problem.facts;
  if (problem.to_a == nullptr) {
    problem.to_a = problem.grad_a;
    problem.to_c = problem.grad_c;
  }
  return layer(sums, backward, problem, where...);
}
template <class Launcher, class... Where>
Status output_gradient(Launcher sums, Launcher backward, AffinityOutputProblem problem,
                       const Where&... where) {
  problem.correction = problem.facts;
  return problem.summed ? layer(sums, backward, problem, where...) : backward(problem, where...);
}

namespace cpu {

#define LOGO_DECLARE(name, Problem) Status name(const Problem& problem);
LOGO_LAUNCHERS(LOGO_DECLARE)
#undef LOGO_DECLARE

#define LOGO_DEFINE(name, Problem, function, first, second) \
  inline Status name(const Problem& problem) { return function(&first, &second, problem); }
LOGO_COMPOSITES(LOGO_DEFINE)
#undef LOGO_DEFINE

// Instruction sets, widest first, that this build and this processor both have.
enum class Simd : int { portable = 0, avx2 = 1, avx512 = 2 };
bool has_simd(Simd simd);
Simd current_simd();
void use_simd(Simd simd);  // for tests; the default is the widest

}  // namespace cpu

namespace cuda {

// The place of a launch. Everything is queued on the stream; nothing waits for it.
//
// The workspace, for the launchers that use one:
//   cosine              of workspace_bytes, zeros before its first use
//   info_nce            of info_nce_workspace_bytes, of any contents
//   info_nce_backward   as cosine; null where the temperature's gradient is not wanted
//   affinity_*_moments, affinity_*_sums, and the layers and gradients that begin with them
//                       of affinity_workspace_bytes, of any contents
// Launches that share it must follow one another, as those of one stream do.
struct Queue {
  int device = 0;
  void* stream = nullptr;
  void* workspace = nullptr;
};

// Why a launch failed: which one, of what shape, on which device, and CUDA's own words.
struct Failure {
  char text[512] = "";
};

#define LOGO_DECLARE(name, Problem) \
  Status name(const Problem& problem, const Queue& queue, Failure* failure);
LOGO_LAUNCHERS(LOGO_DECLARE)
#undef LOGO_DECLARE

#define LOGO_DEFINE(name, Problem, function, first, second)                          \
  inline Status name(const Problem& problem, const Queue& queue, Failure* failure) { \
    return function(&first, &second, problem, queue, failure);                       \
  }
LOGO_COMPOSITES(LOGO_DEFINE)
#undef LOGO_DEFINE

Status scale(const ScaleProblem& problem, const Queue& queue, Failure* failure);
// Whether the driver takes this build's runtime, and the build has code for this device.
Status probe(int device, Failure* failure);

// 0: failure says why.
int64_t workspace_bytes(int device, Failure* failure);
// owed: of the queries; kept: of the negatives.
int64_t info_nce_workspace_bytes(int64_t queries, int64_t negatives, int64_t dim, DType owed,
                                 DType kept, int device, Failure* failure);
int64_t affinity_workspace_bytes(int64_t width, int device, Failure* failure);
int64_t shared_bytes(int device, Failure* failure);  // that a block may have

// The architectures that the CUDA sources were compiled for ("80-real, 90a-real, 100"), "" without
// nvcc.
const char* architectures();

// The most rows of one image that the kernels take.
int max_rows();

}  // namespace cuda
}  // namespace logo
