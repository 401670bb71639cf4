// Stands for csrc/cuda where the build found no nvcc.
#include <cstdio>

#include "logo/launch.h"

namespace logo {
namespace cuda {
namespace {

Status absent(Failure* failure) {
  snprintf(failure->text, sizeof(failure->text), "this extension was built without CUDA");
  return Status::launch_failed;
}

}  // namespace

Status cosine(const CosineProblem&, const Queue&, Failure* failure) { return absent(failure); }
Status similarity(const SimilarityProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status similarity_backward(const SimilarityProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status scale(const ScaleProblem&, const Queue&, Failure* failure) { return absent(failure); }
Status probe(int, Failure* failure) { return absent(failure); }
Status info_nce(const InfoNCEProblem&, const Queue&, Failure* failure) { return absent(failure); }
Status info_nce_backward(const InfoNCEProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_hidden_moments(const PairHiddenProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_hidden(const PairHiddenProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_hidden_sums(const PairHiddenProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_hidden_backward(const PairHiddenProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_output_moments(const PairOutputProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_output(const PairOutputProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_output_sums(const PairOutputProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status pair_output_backward(const PairOutputProblem&, const Queue&, Failure* failure) {
  return absent(failure);
}
Status unit(const UnitProblem&, const Queue&, Failure* failure) { return absent(failure); }
Status unit_backward(const UnitProblem&, const Queue&, Failure* failure) { return absent(failure); }
int64_t workspace_bytes(int, Failure* failure) {
  absent(failure);
  return 0;
}
int64_t info_nce_workspace_bytes(int64_t, int64_t, int64_t, DType, DType, int, Failure* failure) {
  absent(failure);
  return 0;
}
int64_t pair_workspace_bytes(int64_t, int, Failure* failure) {
  absent(failure);
  return 0;
}
int64_t shared_bytes(int, Failure* failure) {
  absent(failure);
  return 0;
}
const char* architectures() { return ""; }
int max_rows() { return 0; }

}  // namespace cuda
}  // namespace logo
