// The whole C++ interface. Launchers take addresses and sizes and return a status; none throws.
#pragma once

#include "logo/problem.h"

namespace logo {

namespace cpu {

Status cosine(const CosineProblem& problem);
Status similarity(const SimilarityProblem& problem);
Status similarity_backward(const SimilarityProblem& problem);

// Instruction sets, widest first, that this build and this processor both have.
enum class Simd : int { portable = 0, avx2 = 1, avx512 = 2 };
bool has_simd(Simd simd);
Simd current_simd();
void use_simd(Simd simd);  // for tests; the default is the widest

}  // namespace cpu

namespace cuda {

// The architectures that the CUDA sources were compiled for ("80-real, 90a-real, 100"), "" without
// nvcc.
const char* architectures();

}  // namespace cuda
}  // namespace logo
