// The rows of one image as a kernel reads them: up to four tensors, one after another.
#pragma once

#include <cuda_runtime.h>

#include "logo/dtypes.h"

namespace logo {
namespace cuda {

constexpr int kMaxSources = 4;

struct Input {
  Rows sources[kMaxSources];
  int first[kMaxSources];  // row of the image at which a source begins
  int count = 0;           // of sources
  int rows = 0;
  int64_t images = 0;
  int64_t dim = 0;
  // Every row begins at a multiple of 16 bytes, is one long, is dense, and has the dtype in which
  // the kernel keeps rows: then they are copied as they are.
  bool as_is = false;

  void add(const Rows& source) {
    sources[count] = source;
    first[count++] = rows;
    rows += int(source.count);
  }
};

// A row of one image: where it begins, and how its elements are to be read.
struct RowAt {
  const char* address;
  DType dtype;
  int64_t element_stride;
};

__device__ __forceinline__ RowAt row_at(const Input& input, int64_t image, int row) {
  int source = 0;
#pragma unroll 1
  while (source + 1 < input.count && row >= input.first[source + 1]) ++source;
  const Rows& rows = input.sources[source];
  return {row_address(rows, image, row - input.first[source]), rows.dtype, rows.element_stride};
}

__device__ __forceinline__ float read_element(const RowAt& row, int64_t column) {
  const char* const at = row.address + column * row.element_stride * dtype_bytes(row.dtype);
  switch (row.dtype) {
    case DType::f32: return *reinterpret_cast<const float*>(at);
    case DType::bf16: return to_float(*reinterpret_cast<const bf16*>(at));
    case DType::f16: return to_float(*reinterpret_cast<const f16*>(at));
    case DType::f64: return float(*reinterpret_cast<const double*>(at));
  }
  return 0;
}

// Whether all rows begin at multiples of 16 bytes, are multiples of 16 bytes long, and are dense.
inline bool in_vectors(const Rows& rows, int64_t images, int64_t dim) {
  const int64_t bytes = dtype_bytes(rows.dtype);
  const auto apart = [&](int64_t count, int64_t stride) {
    return count <= 1 || stride * bytes % 16 == 0;
  };
  return (rows.element_stride == 1 || dim == 1) && dim * bytes % 16 == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && apart(images, rows.image_stride) &&
         apart(rows.count, rows.crop_stride);
}

// The dtype in which rows are kept: theirs, or fp32 where they differ.
inline DType common_dtype(const Input& input) {
  DType dtype = input.sources[0].dtype;
  for (int k = 1; k < input.count; ++k) {
    if (input.sources[k].dtype != dtype) dtype = DType::f32;
  }
  return dtype;
}

inline bool copied_as_is(const Input& input) {
  for (int k = 0; k < input.count; ++k) {
    if (input.sources[k].dtype != input.sources[0].dtype) return false;
    if (!in_vectors(input.sources[k], input.images, input.dim)) return false;
  }
  return true;
}

}  // namespace cuda
}  // namespace logo
