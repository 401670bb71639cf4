// What InfoNCE's two launchers do alike on the host.
#pragma once

#include "cuda/info_nce_rows.cuh"
#include "cuda/launcher.h"
#include "logo/info_nce_problem.h"

namespace logo {
namespace cuda {

inline Queries queries_of(const ContrastProblem& p) {
  Queries queries;
  queries.global = QuadRows(p.global, p.images, p.dim);
  queries.local = QuadRows(p.local, p.images, p.dim);
  queries.crops = Divider(p.global.count + p.local.count);
  queries.count = p.images * queries.crops.by;
  return queries;
}

inline DType dtype_of_queries(const ContrastProblem& p) {
  return p.global.present() ? p.global.dtype : p.local.dtype;
}

// Makes a device current for this library's calls, and reads its limits.
inline cudaError_t enter(int device, Limits* limits) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? limits_of(device, limits) : error;
}

// Its shape is put into words only here, where something has failed.
inline Status fail(const char* launch, const ContrastProblem& p, int device, const char* reason,
                   Failure* failure) {
  const Rows& seen = p.negatives.present() ? p.negatives : p.positives;
  const int64_t negatives = p.negatives.present() ? seen.count : p.images * seen.count;
  char shape[160];
  snprintf(shape, sizeof(shape), "N=%lld K=%lld D=%lld %s for %s",
           static_cast<long long>(queries_of(p).count), static_cast<long long>(negatives),
           static_cast<long long>(p.dim), name_of(seen.dtype), name_of(dtype_of_queries(p)));
  return fail(failure, launch, shape, device, reason);
}

}  // namespace cuda
}  // namespace logo
