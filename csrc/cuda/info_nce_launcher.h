// What InfoNCE's two launchers do alike on the host.
#pragma once

#include "cuda/info_nce_rows.cuh"
#include "cuda/launcher.h"
#include "logo/problem.h"

namespace logo {
namespace cuda {

inline Queries queries_of(const InfoNCEProblem& p) {
  Queries queries;
  queries.global = p.global_crops;
  queries.local = p.local_crops;
  queries.crops = Divider(p.global_crops.count + p.local_crops.count);
  queries.count = p.images * queries.crops.by;
  return queries;
}

inline DType dtype_of_queries(const InfoNCEProblem& p) {
  return p.global_crops.present() ? p.global_crops.dtype : p.local_crops.dtype;
}

// Makes a device current for this library's calls, and reads its limits.
inline cudaError_t enter(int device, Limits* limits) {
  const cudaError_t error = cudaSetDevice(device);
  return error == cudaSuccess ? limits_of(device, limits) : error;
}

}  // namespace cuda
}  // namespace logo
