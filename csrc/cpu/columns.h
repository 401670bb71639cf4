// Rows of any width, a vector of columns at a time.
#pragma once

#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// The compute type of elements of dtype S.
template <class S>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class S>
using Compute = typename ComputeOf<S>::type;

inline Vector<float> stored(Vector<float> value, float) { return value; }
inline Vector<double> stored(Vector<double> value, double) { return value; }
template <class Half>
inline U16 stored(Vector<float> value, Half) {
  return narrow(value, Half());
}

// Half a vector, as the 16-bit dtypes store it: both halves of a line meet on their way to memory.
template <class To>
inline void store_vector(U16 value, To* to, bool streaming) {
#if defined(__AVX512F__)
  if (streaming) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
    return;
  }
#elif defined(__AVX2__)
  if (streaming) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(value));
    return;
  }
#endif
  (void)streaming;
  memcpy(to, &value, sizeof(value));
}

// kLanes<T> columns.
template <class T>
struct Whole {
  template <class S>
  Vector<T> load(const S* from) const {
    return load_as<T>(from);
  }
  template <class S>
  void store(Vector<T> value, S* to, bool streaming = false) const {
    store_vector(stored(value, S()), to, streaming);
  }
};

// The last columns of a row, fewer than kLanes<T>; the lanes without one are zeros.
template <class T>
struct Part {
  int64_t count;

  template <class S>
  Vector<T> load(const S* from) const {
    S row[kLanes<T>] = {};
    memcpy(row, from, size_t(count) * sizeof(S));
    return load_as<T>(row);
  }
  template <class S>
  void store(Vector<T> value, S* to, bool = false) const {
    const auto row = stored(value, S());
    memcpy(to, &row, size_t(count) * sizeof(S));
  }
};

// each(k, at) for the columns k … of a row: `at` loads and stores them.
template <class T, class Each>
inline void for_columns(int64_t width, const Each& each) {
  int64_t k = 0;
  for (; k + kLanes<T> <= width; k += kLanes<T>) each(k, Whole<T>{});
  if (k < width) each(k, Part<T>{width - k});
}

// Rows handled at once share the loads for their columns.
template <int N>
struct Count {
  static constexpr int value = N;
};
constexpr int64_t kAtOnce = 4;

// each(first, Count<N>) for runs of up to kAtOnce of `count` rows.
template <class Each>
inline void for_rows(int64_t count, const Each& each) {
  int64_t first = 0;
  for (; first + kAtOnce <= count; first += kAtOnce) each(first, Count<kAtOnce>{});
  switch (count - first) {
    case 3: return each(first, Count<3>{});
    case 2: return each(first, Count<2>{});
    case 1: return each(first, Count<1>{});
  }
}

// each(Layer<S>(problem)), S the dtype of its rows.
template <template <class S> class Layer, class Problem, class Each>
inline Status by_dtype(const Problem& problem, const Each& each) {
  switch (problem.dtype) {
    case DType::f32: return each(Layer<float>(problem));
    case DType::f64: return each(Layer<double>(problem));
    case DType::bf16: return each(Layer<bf16>(problem));
    case DType::f16: return each(Layer<f16>(problem));
  }
  return Status::launch_failed;
}

// Whether an array of rows is to be written past the caches: it is larger than they are, and every
// vector of it is aligned.
template <class S>
inline bool streams(const void* array, int64_t rows, int64_t width) {
  constexpr int64_t kLargest = 32 << 20;
  return rows * width * int64_t(sizeof(S)) > kLargest && width % kLanes<Compute<S> > == 0 &&
         reinterpret_cast<uintptr_t>(array) % LOGO_VECTOR_BYTES == 0;
}

}  // namespace
}  // namespace cpu
}  // namespace logo
