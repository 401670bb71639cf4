// Stands for csrc/cuda in a build without nvcc.
#include <cstdio>

#include "logo/operations.h"

namespace logo {
namespace cuda {
namespace {

Status absent(Failure* failure) {
  snprintf(failure->text, sizeof(failure->text), "this extension was built without CUDA");
  return Status::launch_failed;
}

}  // namespace

#define LOGO_ABSENT(name, Problem) \
  Status name(const Problem&, const Queue&, Failure* failure) { return absent(failure); }
LOGO_LAUNCHERS(LOGO_ABSENT)
#undef LOGO_ABSENT

Status scale(const ScaleProblem&, const Queue&, Failure* failure) { return absent(failure); }
Status probe(int, Failure* failure) { return absent(failure); }
int64_t workspace_bytes(int, Failure* failure) {
  absent(failure);
  return 0;
}
int64_t info_nce_workspace_bytes(int64_t, int64_t, int64_t, DType, DType, int, Failure* failure) {
  absent(failure);
  return 0;
}
int64_t affinity_workspace_bytes(int64_t, int, Failure* failure) {
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
