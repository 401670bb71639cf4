// What InfoNCE's two launchers do alike on the host.
#pragma once

#include "cuda/info_nce_rows.cuh"
#include "cuda/launcher.h"
#include "logo/info_nce_problem.h"

namespace logo {
namespace cuda {

inline Queries queries_of(const InfoNCEProblem& p) {
  Queries queries;
  queries.global = p.global;
  queries.local = p.local;
  queries.crops = Divider(p.global.count + p.local.count);
  queries.count = p.images * queries.crops.by;
  return queries;
}

inline DType dtype_of_queries(const InfoNCEProblem& p) {
  return p.global.present() ? p.global.dtype : p.local.dtype;
}

// Makes a device current for this library's calls, and reads its limits.
inline cudaError_t enter(int device, Limits* limits) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? limits_of(device, limits) : error;
}

}  // namespace cuda
}  // namespace logo
