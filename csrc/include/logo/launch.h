// The whole C++ interface. Launchers take addresses and sizes and return a status; none throws.
#pragma once

#include "logo/info_nce_problem.h"
#include "logo/pair_problem.h"
#include "logo/problem.h"

namespace logo {

namespace cpu {

Status cosine(const CosineProblem& problem);
Status similarity(const SimilarityProblem& problem);
Status similarity_backward(const SimilarityProblem& problem);
Status info_nce(const InfoNCEProblem& problem);
Status info_nce_backward(const InfoNCEProblem& problem);
Status pair_hidden_moments(const PairHiddenProblem& problem);
Status pair_hidden(const PairHiddenProblem& problem);
Status pair_hidden_sums(const PairHiddenProblem& problem);
Status pair_hidden_backward(const PairHiddenProblem& problem);
Status pair_output_moments(const PairOutputProblem& problem);
Status pair_output(const PairOutputProblem& problem);
Status pair_output_sums(const PairOutputProblem& problem);
Status pair_output_backward(const PairOutputProblem& problem);
Status unit(const UnitProblem& problem);
Status unit_backward(const UnitProblem& problem);

// Instruction sets, widest first, that this build and this processor both have.
enum class Simd : int { portable = 0, avx2 = 1, avx512 = 2 };
bool has_simd(Simd simd);
Simd current_simd();
void use_simd(Simd simd);  // for tests; the default is the widest

}  // namespace cpu

namespace cuda {

// Where and with what a kernel runs. Everything is queued on the stream; nothing waits for it.
struct Queue {
  int device = 0;
  void* stream = nullptr;
  // Of workspace_bytes(device), zeros before its first use; launches that share it must follow one
  // another, as those of one stream do.
  void* workspace = nullptr;
};

// Why a launch failed: which one, of what shape, on which device, and CUDA's own words.
struct Failure {
  char text[512] = "";
};

Status cosine(const CosineProblem& problem, const Queue& queue, Failure* failure);
Status similarity(const SimilarityProblem& problem, const Queue& queue, Failure* failure);
Status similarity_backward(const SimilarityProblem& problem, const Queue& queue, Failure* failure);
Status scale(const ScaleProblem& problem, const Queue& queue, Failure* failure);
// Whether the driver takes this build's runtime, and the build has code for this device.
Status probe(int device, Failure* failure);
// The queue's workspace is of info_nce_workspace_bytes and need not be zeros.
Status info_nce(const InfoNCEProblem& problem, const Queue& queue, Failure* failure);
// The queue's workspace is of workspace_bytes, and used where the temperature's gradient is wanted.
Status info_nce_backward(const InfoNCEProblem& problem, const Queue& queue, Failure* failure);
// The queue's workspace is of pair_workspace_bytes and need not be zeros; the launches of moments
// and of sums use it.
Status pair_hidden_moments(const PairHiddenProblem& problem, const Queue& queue, Failure* failure);
Status pair_hidden(const PairHiddenProblem& problem, const Queue& queue, Failure* failure);
Status pair_hidden_sums(const PairHiddenProblem& problem, const Queue& queue, Failure* failure);
Status pair_hidden_backward(const PairHiddenProblem& problem, const Queue& queue, Failure* failure);
Status pair_output_moments(const PairOutputProblem& problem, const Queue& queue, Failure* failure);
Status pair_output(const PairOutputProblem& problem, const Queue& queue, Failure* failure);
Status pair_output_sums(const PairOutputProblem& problem, const Queue& queue, Failure* failure);
Status pair_output_backward(const PairOutputProblem& problem, const Queue& queue, Failure* failure);
Status unit(const UnitProblem& problem, const Queue& queue, Failure* failure);
Status unit_backward(const UnitProblem& problem, const Queue& queue, Failure* failure);

// 0: failure says why.
int64_t workspace_bytes(int device, Failure* failure);
// owed: of the queries; kept: of the negatives.
int64_t info_nce_workspace_bytes(int64_t queries, int64_t negatives, int64_t dim, DType owed,
                                 DType kept, int device, Failure* failure);
int64_t pair_workspace_bytes(int64_t width, int device, Failure* failure);
int64_t shared_bytes(int device, Failure* failure);  // that a block may have

// The architectures that the CUDA sources were compiled for ("80-real, 90a-real, 100"), "" without
// nvcc.
const char* architectures();

// The most rows of one image that the kernels take.
int max_rows();

}  // namespace cuda
}  // namespace logo
