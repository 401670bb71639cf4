// Powers of two, a vector at once, for a softmax: within an ulp or so, NaN stays NaN.
#pragma once

#include "cpu/simd.h"

namespace logo {
namespace cpu {
namespace {

// 2^f for |f| ≤ 1/2: minimax of the relative error, 7.5e-8 and 3e-18.
template <class T>
struct Exp2;
template <>
struct Exp2<float> {
  typedef uint32_t Bits __attribute__((vector_size(LOGO_VECTOR_BYTES)));
  static constexpr int kMantissa = 23;
  static constexpr uint32_t kOne = 0x3f800000;
  static constexpr float kLeast = -126;    // exponent of a normal number
  static constexpr float kRound = 0x3p22;  // added, it leaves no bits for a fraction
  static constexpr int kTerms = 6;
  static constexpr float kSeries[kTerms] = {1.00000007165f,   0.693146967065f,   0.240221197237f,
                                            0.0555071327186f, 0.00967554134312f, 0.00132764726320f};
};
template <>
struct Exp2<double> {
  typedef uint64_t Bits __attribute__((vector_size(LOGO_VECTOR_BYTES)));
  static constexpr int kMantissa = 52;
  static constexpr uint64_t kOne = 0x3ff0000000000000;
  static constexpr double kLeast = -1022;
  static constexpr double kRound = 0x3p51;
  static constexpr int kTerms = 12;
  static constexpr double kSeries[kTerms] = {
      0.9999999999999999971,    0.6931471805599453305,     0.240226506959101562,
      0.0555041086648199216,    0.009618129107588335244,   0.001333355814678992172,
      0.0001540353046251443206, 0.00001525273348998852565, 1.321543308967639918e-6,
      1.017819802167193084e-7,  7.074105613508142796e-9,   4.435282706957277151e-10};
};

// value · 2^power for a whole power ≤ 1; 0 in the place of numbers that are not normal.
template <class T>
inline Vector<T> times_power(Vector<T> value, Vector<T> power) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return Vector<T>(_mm512_scalef_ps(__m512(value), __m512(power)));
  } else {
    return Vector<T>(_mm512_scalef_pd(__m512d(value), __m512d(power)));
  }
#else
  using Bits = typename Exp2<T>::Bits;
  const Vector<T> whole = power + Exp2<T>::kRound;  // its last bits are the power
  const Bits factor = (reinterpret_cast<Bits>(whole) << Exp2<T>::kMantissa) + Exp2<T>::kOne;
  const Vector<T> least = Vector<T>{} + Exp2<T>::kLeast;
  return power < least ? Vector<T>{} : value * reinterpret_cast<Vector<T>>(factor);
#endif
}

// The fused multiply-add rounds x · scale only after its whole part is gone. Without it, factors of
// half the digits have an exact product.
#if defined(__FMA__) || defined(__FP_FAST_FMAF)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

template <class T>
inline Vector<T> leading_half(Vector<T> value) {
  using Bits = typename Exp2<T>::Bits;
  const Bits trailing = ((Bits{} + 1) << (Exp2<T>::kMantissa + 1) / 2) - 1;
  return reinterpret_cast<Vector<T>>(reinterpret_cast<Bits>(value) & ~trailing);
}

// A factor in two parts: x is multiplied with the first, and with the rest apart.
template <class T>
struct Scale {
  T first, rest;
  explicit Scale(double value) : first(T(value)) {
    if (!kFused) first = leading_half<T>(Vector<T>{} + first)[0];
    rest = T(value - double(first));
  }
};

// 2^(x scale − exponent) for a whole exponent that leaves no power above 1.
template <class T>
inline Vector<T> exp2_less(Vector<T> x, Scale<T> scale, T exponent) {
  const Vector<T> whole = (x * scale.first + Exp2<T>::kRound) - Exp2<T>::kRound;
  const Vector<T> high = kFused ? x : leading_half<T>(x);
  Vector<T> fraction = (high * scale.first - whole) + x * scale.rest;
  if (!kFused) fraction += (x - high) * scale.first;
  Vector<T> value = Vector<T>{} + Exp2<T>::kSeries[Exp2<T>::kTerms - 1];
#pragma GCC unroll 12
  for (int k = Exp2<T>::kTerms - 2; k >= 0; --k) value = value * fraction + Exp2<T>::kSeries[k];
  return times_power<T>(value, whole - exponent);
}

}  // namespace
}  // namespace cpu
}  // namespace logo
