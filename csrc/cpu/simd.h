// Vectors of the widest kind that this translation unit is compiled for, and their conversion.
//
// Written with the vector extensions of GCC and Clang; intrinsics only where those have no word
// (fp16, streaming stores, horizontal sums). All in an anonymous namespace: see macros.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "logo/dtypes.h"

#if defined(__AVX512F__)
#define LOGO_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define LOGO_VECTOR_BYTES 32
#else
#define LOGO_VECTOR_BYTES 16
#endif

namespace logo {
namespace cpu {
namespace {

// Unaligned vectors of compute type T, float or double.
template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(LOGO_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(LOGO_VECTOR_BYTES), aligned(8), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = LOGO_VECTOR_BYTES / int(sizeof(T));

typedef uint32_t U32 __attribute__((vector_size(LOGO_VECTOR_BYTES), aligned(4), may_alias));
typedef uint16_t U16 __attribute__((vector_size(LOGO_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class T>
inline Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

// Keeps a value in a register. GCC would load it anew for each product, and inner products wait for
// the load ports.
template <class V>
inline V in_register(V value) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(value));
#elif defined(__SSE2__)
  __asm__("" : "+x"(value));
#endif
  return value;
}

inline Vector<float> load_as_float(const float* from) { return load(from); }
inline Vector<float> load_as_float(const bf16* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return Vector<float>(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return Vector<float>(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)));
#else
  const U16 bits = *reinterpret_cast<const U16*>(from);
  return reinterpret_cast<Vector<float> >(__builtin_convertvector(bits, U32) << 16);
#endif
}
inline Vector<float> load_as_float(const f16* from) {
#if defined(__AVX512F__)
  return Vector<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  return Vector<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Vector<float> out;
  for (int lane = 0; lane < kLanes<float>; ++lane) out[lane] = to_float(from[lane]);
  return out;
#endif
}

// Elements of dtype S as a vector of compute type T, where one has a vector for the other.
template <class T, class S>
inline Vector<T> load_as(const S* from) {
  if constexpr (sizeof(T) == 8) {
    static_assert(sizeof(S) == 8, "fp64 is computed from fp64 rows or from a panel");
    return load(from);
  } else {
    return load_as_float(from);
  }
}

inline U16 narrow(Vector<float> value, bf16) {  // round to nearest even
#if defined(__AVX512F__)
  const __m512i bits = _mm512_castps_si512(__m512(value));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(__m512(value), __m512(value), _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, is_nan, _mm512_set1_epi32(0x7fc0));
  return U16(_mm512_cvtepi32_epi16(rounded));
#else
  const U32 bits = reinterpret_cast<U32>(value);
  const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U32 is_nan = reinterpret_cast<U32>(value != value);  // all ones or zero
  return __builtin_convertvector((rounded & ~is_nan) | (0x7fc0 & is_nan), U16);
#endif
}
inline U16 narrow(Vector<float> value, f16) {
#if defined(__AVX512F__)
  return U16(_mm512_cvtps_ph(__m512(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  return U16(_mm256_cvtps_ph(__m256(value), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  U16 out;
  for (int lane = 0; lane < kLanes<float>; ++lane) {
    f16 half;
    from_float(value[lane], &half);
    out[lane] = half.bits;
  }
  return out;
#endif
}

// Past the caches where `streaming`: the line is written whole, so reading it first would be waste.
// The address must then be a multiple of the vector's size.
template <class V, class To>
inline void store_vector(V value, To* to, bool streaming) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    if (streaming) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
      return;
    }
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    if (streaming) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
      return;
    }
  }
#endif
  (void)streaming;
  memcpy(to, &value, sizeof(V));
}

// Two vectors, side by side.
inline void store2(Vector<float> low, Vector<float> high, float* to, bool streaming) {
  store_vector(low, to, streaming);
  store_vector(high, to + kLanes<float>, streaming);
}
inline void store2(Vector<double> low, Vector<double> high, double* to, bool streaming) {
  store_vector(low, to, streaming);
  store_vector(high, to + kLanes<double>, streaming);
}
// Two half vectors as a whole one, in registers: a detour by memory would wait for both stores.
inline U32 join(U16 low, U16 high) {
#if defined(__AVX512F__)
  return U32(_mm512_inserti64x4(_mm512_castsi256_si512(__m256i(low)), __m256i(high), 1));
#elif defined(__AVX2__)
  return U32(_mm256_inserti128_si256(_mm256_castsi128_si256(__m128i(low)), __m128i(high), 1));
#else
  struct {
    U16 low, high;
  } both = {low, high};
  U32 line;
  memcpy(&line, &both, sizeof(line));
  return line;
#endif
}
template <class Half>  // two narrowed halves fill one vector, so that a streamed line is whole
inline void store2(Vector<float> low, Vector<float> high, Half* to, bool streaming) {
  store_vector(join(narrow(low, Half()), narrow(high, Half())), to, streaming);
}

inline void streaming_fence(bool streaming) {
#if defined(__SSE2__)
  if (streaming) _mm_sfence();
#else
  (void)streaming;
#endif
}

// out[k] = Σ lanes of from[k], k < 4. Four at once, since shuffles are the cost.
inline void sum4(const Vector<double>* from, double* out) {
  for (int k = 0; k < 4; ++k) {
    double sum = 0;
    for (int lane = 0; lane < kLanes<double>; ++lane) sum += from[k][lane];
    out[k] = sum;
  }
}
inline void sum4(const Vector<float>* from, float* out) {
#if defined(__AVX2__)
  __m256 half[4];
  for (int k = 0; k < 4; ++k) {
#if defined(__AVX512F__)
    const __m512d whole = reinterpret_cast<__m512d>(from[k]);
    half[k] = _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(whole)),
                            _mm256_castpd_ps(_mm512_extractf64x4_pd(whole, 1)));
#else
    half[k] = __m256(from[k]);
#endif
  }
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(half[0], half[1]), _mm256_hadd_ps(half[2], half[3]));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  for (int k = 0; k < 4; ++k) {
    float sum = 0;
    for (int lane = 0; lane < kLanes<float>; ++lane) sum += from[k][lane];
    out[k] = sum;
  }
#endif
}

}  // namespace
}  // namespace cpu
}  // namespace logo
