// Loads and stores with a cache hint, fences, atomics. Threads change only where one waits, so
// plain operations are atomic. They might reveal an order, so some of them let other threads go
// first. That also lets a thread spin on an atomic within its block.
#pragma once

#include "emulation/run.h"
#include "emulation/types.h"

namespace emulation {

// Keeps an argument out of deduction: the address alone decides the type, as in CUDA's overloads.
template <class T>
struct Same {
  using Type = T;
};

}  // namespace emulation

template <class T>
inline T __ldg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcg(const T* address) {
  return *address;
}
template <class T>
inline T __ldcs(const T* address) {
  return *address;
}
template <class T>
inline void __stcg(T* address, typename emulation::Same<T>::Type value) {
  *address = value;
}
template <class T>
inline void __stwb(T* address, typename emulation::Same<T>::Type value) {
  *address = value;
}
template <class T>
inline void __stcs(T* address, typename emulation::Same<T>::Type value) {
  *address = value;
}

inline void __threadfence() { emulation::perhaps_let_others_run(); }
inline void __threadfence_block() { emulation::perhaps_let_others_run(); }
inline void __nanosleep(unsigned) { emulation::perhaps_let_others_run(); }
[[noreturn]] inline void __trap() { emulation::fail("__trap()"); }

namespace emulation {

template <class T, class Change>
inline T atomic(T* address, Change change) {
  perhaps_let_others_run();
  const T before = *address;
  *address = change(before);
  return before;
}

}  // namespace emulation

template <class T>
inline T atomicAdd(T* address, typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T before) { return T(before + value); });
}
template <class T>
inline T atomicMax(T* address, typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T before) { return before < value ? value : before; });
}
template <class T>
inline T atomicMin(T* address, typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T before) { return value < before ? value : before; });
}
template <class T>
inline T atomicExch(T* address, typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T) { return value; });
}
template <class T>
inline T atomicCAS(T* address, typename emulation::Same<T>::Type expected,
                   typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T before) { return before == expected ? value : before; });
}
template <class T>
inline T atomicOr(T* address, typename emulation::Same<T>::Type value) {
  return emulation::atomic(address, [=](T before) { return T(before | value); });
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return emulation::atomic(address,
                           [=](unsigned before) { return before >= last ? 0 : before + 1; });
}
