// Subnormal numbers are computed with, whatever the caller's mode.
//
// torch.set_flush_denormal is of one thread: with the mode as it is found, results would depend on
// which thread computes them.
#pragma once

#include <cstdint>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace logo {
namespace cpu {
namespace {

// The mode of the thread that makes it, until it goes. Every parallel region begins with one.
class WithSubnormals {
 public:
#if defined(__SSE__)
  WithSubnormals() : found_(_mm_getcsr()) {
    if (found_ & kFlush) _mm_setcsr(found_ & ~kFlush);
  }
  ~WithSubnormals() {
    if (found_ & kFlush) _mm_setcsr(found_);
  }

 private:
  static constexpr unsigned kFlush = 0x8040;  // results to zero, operands to zero
  const unsigned found_;
#elif defined(__aarch64__)
  WithSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(found_));
    if (found_ & kFlush) asm volatile("msr fpcr, %0" ::"r"(found_ & ~kFlush));
  }
  ~WithSubnormals() {
    if (found_ & kFlush) asm volatile("msr fpcr, %0" ::"r"(found_));
  }

 private:
  static constexpr uint64_t kFlush = uint64_t(1) << 24;  // operands and results to zero
  uint64_t found_;
#else
  WithSubnormals() {}
  ~WithSubnormals() {}
#endif
  WithSubnormals(const WithSubnormals&) = delete;
  WithSubnormals& operator=(const WithSubnormals&) = delete;
};

}  // namespace
}  // namespace cpu
}  // namespace logo
