// Crops as they come, a warp to a row: read in words, and divided by their norms.
//
// A word is four numbers where all tensors of a launch allow it, else one.
#pragma once

#include <cuda_runtime.h>

#include "cuda/convert.cuh"
#include "cuda/divider.cuh"
#include "cuda/info_nce_norms.cuh"
#include "cuda/warp.cuh"
#include "logo/problem.h"

namespace logo {
namespace cuda {

// Whether four numbers of a row lie in one aligned word. Of absent tensors, yes.
inline bool in_quads(const Rows& rows, int64_t images, int64_t dim) {
  const auto whole = [](int64_t count, int64_t stride) { return count <= 1 || stride % 4 == 0; };
  return !rows.present() ||
         (rows.element_stride == 1 && dim % 4 == 0 &&
          reinterpret_cast<uintptr_t>(rows.data) % (4 * dtype_bytes(rows.dtype)) == 0 &&
          whole(images, rows.image_stride) && whole(rows.count, rows.crop_stride));
}

// A row of a crop.
struct CropRow {
  const char* address;
  int64_t step;  // bytes from number to number
  DType dtype;

  __device__ __forceinline__ CropRow(const Rows& rows, int64_t image, int64_t crop)
      : address(row_address(rows, image, crop)),
        step(rows.element_stride * dtype_bytes(rows.dtype)),
        dtype(rows.dtype) {}
};

// Where query n = b·V + v stands.
struct QueryAt {
  int64_t image, crop;  // the crop among the global or among the local ones
  bool global;
};

// A launch's problem, and where its queries stand.
struct OfQueries {
  InfoNCEProblem p;
  int64_t count;  // N = B·V
  Divider crops;  // V

  explicit OfQueries(const InfoNCEProblem& problem)
      : p(problem), count(p.queries()), crops(p.crops()) {}

  __device__ __forceinline__ QueryAt at(int64_t query) const {
    const int64_t image = crops.quotient(query), crop = query - image * crops.by;
    const int64_t globals = p.global_crops.count;
    return crop < globals ? QueryAt{image, crop, true} : QueryAt{image, crop - globals, false};
  }
  __device__ __forceinline__ CropRow row(const QueryAt& at) const {
    return {at.global ? p.global_crops : p.local_crops, at.image, at.crop};
  }
  // τ in memory, which the host has not looked at: NaN unless it is positive.
  __device__ __forceinline__ float temperature_in_memory() const {
    const float tau = *static_cast<const float*>(p.temperature_tensor);
    return tau > 0 ? tau : __uint_as_float(0x7fffffff);
  }
};

template <int N>
struct Word {
  float v[N];
};

// factor · w + to.
template <int N>
__device__ __forceinline__ Word<N> fma(float factor, Word<N> w, const Word<N>& to) {
#pragma unroll
  for (int k = 0; k < N; ++k) w.v[k] = fmaf(factor, w.v[k], to.v[k]);
  return w;
}
template <int N>
__device__ __forceinline__ Word<N> operator*(float factor, Word<N> w) {
#pragma unroll
  for (int k = 0; k < N; ++k) w.v[k] *= factor;
  return w;
}
template <int N>
__device__ __forceinline__ float dot(const Word<N>& w, const Word<N>& x) {
  float sum = w.v[0] * x.v[0];
#pragma unroll
  for (int k = 1; k < N; ++k) sum = fmaf(w.v[k], x.v[k], sum);
  return sum;
}

// Columns of a lane: this one, and from there on in steps.
template <int N>
__device__ __forceinline__ int64_t first_column() {
  return N * (threadIdx.x % 32);
}
template <int N>
constexpr int kColumnStep = N * 32;

// Zeros beyond the last column.
template <int N>
__device__ __forceinline__ Word<N> read(const CropRow& row, int64_t column, int64_t dim) {
  Word<N> w = {};
  if (column >= dim) return w;
  const char* const at = row.address + column * row.step;
  const bool is_bf16 = row.dtype == DType::bf16;
  const auto widen_pair = [&](uint32_t bits) {
    return is_bf16 ? unpack<bf16>(bits) : unpack<f16>(bits);
  };
  if constexpr (N == 1) {
    w.v[0] = row.dtype == DType::f32 ? *reinterpret_cast<const float*>(at)
                                     : widen_pair(*reinterpret_cast<const uint16_t*>(at)).x;
  } else if (row.dtype == DType::f32) {
    const float4 v = *reinterpret_cast<const float4*>(at);
    w = {v.x, v.y, v.z, v.w};
  } else {
    const uint2 bits = *reinterpret_cast<const uint2*>(at);
    const float2 low = widen_pair(bits.x), high = widen_pair(bits.y);
    w = {low.x, low.y, high.x, high.y};
  }
  return w;
}

// Rounds to nearest.
template <class T>
__device__ __forceinline__ void write(const Word<1>& w, T* to) {
  from_float(w.v[0], to);
}
template <class T>
__device__ __forceinline__ void write(const Word<4>& w, T* to) {
  if constexpr (std::is_same_v<T, float>) {
    *reinterpret_cast<float4*>(to) = make_float4(w.v[0], w.v[1], w.v[2], w.v[3]);
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack<T>(w.v[0], w.v[1]), pack<T>(w.v[2], w.v[3]));
  }
}

// A row over its norm is inverse · (factor · row): 0 of a zero row, NaN where it has NaN or inf.
struct Unit {
  float factor, inverse;

  template <int N>
  __device__ __forceinline__ Word<N> of(const Word<N>& w) const {
    return inverse * (factor * w);
  }
};

// The factor with which squares of a row neither overflow nor underflow, from their sum without.
__device__ __forceinline__ float factor_for(DType dtype, float squared) {
  if (dtype == DType::f16 || squares_well(squared)) return 1;
  return squared > 1 ? kFactorDown : kFactorUp;
}
__device__ __forceinline__ float inverse_norm(float squared) {
  if (squared == 0) return 0;
  return squared <= 3.4028235e38f ? inverse_root(squared) : __uint_as_float(0x7fffffff);
}

// The unit of a row from squares(factor), a lane's sum of squares. This and all below are called by
// all lanes of a warp.
template <class Squares>
__device__ __forceinline__ Unit unit_from(DType dtype, const Squares& squares) {
  float squared = warp_sum(squares(1.0f));
  const float factor = factor_for(dtype, squared);
  if (factor != 1) squared = warp_sum(squares(factor));
  return {factor, inverse_norm(squared)};
}
template <int N>
__device__ __forceinline__ Unit unit_of(const CropRow& row, int64_t dim) {
  return unit_from(row.dtype, [&](float factor) {
    float sum = 0;
#pragma unroll 1
    for (int64_t column = first_column<N>(); column < dim; column += kColumnStep<N>) {
      const Word<N> w = factor * read<N>(row, column, dim);
      sum += dot(w, w);
    }
    return sum;
  });
}

template <int N, int K>
__device__ __forceinline__ float dot_of_words(const Word<N> (&w)[K], const Word<N> (&x)[K]) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) sum += dot(w[k], x[k]);
  return sum;
}
// The unit of a row whose words are spread over the lanes.
template <int N, int K>
__device__ __forceinline__ Unit unit_of_words(const Word<N> (&words)[K], DType dtype) {
  return unit_from(dtype, [&](float factor) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Word<N> w = factor * words[k];
      sum += dot(w, w);
    }
    return sum;
  });
}

// The cosine of a row whose unit is known with another, which is read once unless its norm is out
// of range.
template <int N>
__device__ __forceinline__ float cosine_with(const CropRow& row, const Unit& unit,
                                             const CropRow& other, int64_t dim) {
  float factor = 1;
  for (;;) {
    float product = 0, squared = 0;
#pragma unroll 1
    for (int64_t column = first_column<N>(); column < dim; column += kColumnStep<N>) {
      const Word<N> w = factor * read<N>(other, column, dim);
      product += dot(unit.of(read<N>(row, column, dim)), w);
      squared += dot(w, w);
    }
    product = warp_sum(product);
    squared = warp_sum(squared);
    const float better = factor == 1 ? factor_for(other.dtype, squared) : factor;
    if (better == factor) return product * inverse_norm(squared);
    factor = better;
  }
}

}  // namespace cuda
}  // namespace logo
