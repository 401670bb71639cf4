// How gradients are written.
#pragma once

#include <cuda_runtime.h>

#include "cuda/convert.cuh"
#include "cuda/input.cuh"
#include "cuda/stage.cuh"

namespace logo {
namespace cuda {

struct Output {
  Rows rows;
  bool vectors;  // rows lie in multiples of 16 bytes and have the dtype in which the kernel works

  Output() : vectors(false) {}
  Output(const Rows& to, int64_t images, int64_t dim, DType dtype)
      : rows(to), vectors(to.dtype == dtype && in_vectors(to, images, dim)) {}

  // Nothing to write, or nothing but whole vectors.
  bool plain() const { return !rows.present() || vectors; }
};

__device__ __forceinline__ void write_element(char* row, DType dtype, int64_t column, float value) {
  switch (dtype) {
    case DType::f32: reinterpret_cast<float*>(row)[column] = value; break;
    case DType::bf16: from_float(value, reinterpret_cast<bf16*>(row) + column); break;
    case DType::f16: from_float(value, reinterpret_cast<f16*>(row) + column); break;
    case DType::f64: break;  // refused before
  }
}
__device__ __forceinline__ void write_element(const Rows& rows, int64_t image, int crop, int column,
                                              float value) {
  char* const row = const_cast<char*>(row_address(rows, image, crop));
  write_element(row, rows.dtype, column * rows.element_stride, value);
}

__device__ __forceinline__ uint4 narrow(const float (&v)[4], float) {
  return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]),
                    __float_as_uint(v[3]));
}
template <class Half>
__device__ __forceinline__ uint4 narrow(const float (&v)[8], Half) {
  return make_uint4(pack<Half>(v[0], v[1]), pack<Half>(v[2], v[3]), pack<Half>(v[4], v[5]),
                    pack<Half>(v[6], v[7]));
}

// Where a row of a gradient begins; null where it is not wanted.
__device__ __forceinline__ char* begin_of(const Output& out, int64_t image, int crop) {
  return out.rows.present() ? const_cast<char*>(row_address(out.rows, image, crop)) : nullptr;
}

template <class T>
__device__ __forceinline__ void store_vector(const Output& out, char* row, int64_t column,
                                             int64_t dim, const float (&values)[kVector<T>]) {
  const DType dtype = out.rows.dtype;
  char* const to = row + column * dtype_bytes(dtype);
  if (out.vectors) {
    // Nothing reads the gradient before the next kernel: it should not push crops out of L2.
    __stcs(reinterpret_cast<uint4*>(to), narrow(values, T()));
    return;
  }
#pragma unroll
  for (int k = 0; k < kVector<T>; ++k) {
    if (column + k >= dim) break;
    write_element(to, dtype, k, values[k]);
  }
}

}  // namespace cuda
}  // namespace logo
