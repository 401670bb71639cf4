// The instruction set is chosen when the program runs: one build serves every processor.
#include <atomic>

#include "cpu/subnormals.h"
#include "cpu/variants.h"
#include "logo/operations.h"

namespace logo {
namespace cpu {
namespace {

Simd widest() {
  if (has_simd(Simd::avx512)) return Simd::avx512;
  return has_simd(Simd::avx2) ? Simd::avx2 : Simd::portable;
}

std::atomic<Simd>& chosen() {
  static std::atomic<Simd> simd{widest()};
  return simd;
}

}  // namespace

bool has_simd(Simd simd) {
#if defined(LOGO_X86)
  switch (simd) {
    case Simd::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Simd::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Simd::portable: return true;
  }
#endif
  return simd == Simd::portable;
}

Simd current_simd() { return chosen().load(std::memory_order_relaxed); }
void use_simd(Simd simd) { chosen().store(simd, std::memory_order_relaxed); }

#if defined(LOGO_X86)
#define LOGO_DISPATCH(name, Problem)                   \
  Status name(const Problem& problem) {                \
    const WithSubnormals mode;                         \
    switch (current_simd()) {                          \
      case Simd::avx512: return avx512::name(problem); \
      case Simd::avx2: return avx2::name(problem);     \
      case Simd::portable: break;                      \
    }                                                  \
    return portable::name(problem);                    \
  }
#else
#define LOGO_DISPATCH(name, Problem)    \
  Status name(const Problem& problem) { \
    const WithSubnormals mode;          \
    return portable::name(problem);     \
  }
#endif

LOGO_LAUNCHERS(LOGO_DISPATCH)

}  // namespace cpu
}  // namespace logo
