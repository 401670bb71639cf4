// Copies from global to shared memory that run beside the threads: 16 bytes per thread (sm_80), or
// whole runs by the copy engine (sm_90), which reports to an mbarrier.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace logo::cuda {

// The copy engine, and with it everything here that takes Arrivals. A constant on a device.
__device__ __forceinline__ bool has_bulk_copies() {
#if defined(LOGO_EMULATED)
  return emulation::settings.architecture >= 90;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}

#if !defined(LOGO_EMULATED)
__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return uint32_t(__cvta_generic_to_shared(shared));
}
#endif

// Past L1: a block reads such bytes once.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
#if defined(LOGO_EMULATED)
  emulation::copy_async(shared, global);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(global)
               : "memory");
#endif
}

__device__ __forceinline__ void copy_commit() {
#if defined(LOGO_EMULATED)
  emulation::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Until at most `pending` of this thread's newest groups are under way; more than 3 act as 3. Other
// threads' copies need a barrier after it.
__device__ __forceinline__ void copy_wait(int pending) {
#if defined(LOGO_EMULATED)
  emulation::copy_wait(pending > 3 ? 3 : pending);
#else
  switch (pending) {  // the instruction takes a constant
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
  }
#endif
}

// An mbarrier in shared memory. A phase is complete when `count` threads have arrived and all the
// bytes that they expect have landed; then the next one begins, with the other parity, first 0.
using Arrivals = uint64_t;

// One thread, once; then arrivals_fence_init() by the same thread, and a barrier of the block.
__device__ __forceinline__ void arrivals_init(Arrivals* arrivals, uint32_t count) {
#if defined(LOGO_EMULATED)
  emulation::arrivals_init(arrivals, count);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrivals)), "r"(count)
               : "memory");
#else
  __trap();
#endif
}

// The copy engine reads shared memory by another path (the async proxy) than the threads write it.
__device__ __forceinline__ void arrivals_fence_init() {
#if defined(LOGO_EMULATED)
  emulation::arrivals_fence_init();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "fence.mbarrier_init.release.cluster;\n"
      "fence.proxy.async.shared::cta;" ::
          : "memory");
#else
  __trap();
#endif
}

// Arrives, and makes the present phase wait for so many bytes.
__device__ __forceinline__ void arrivals_expect(Arrivals* arrivals, uint32_t bytes) {
#if defined(LOGO_EMULATED)
  emulation::arrivals_expect(arrivals, bytes);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrivals)),
      "r"(bytes)
      : "memory");
#else
  __trap();
#endif
}

// Until the phase with this parity is complete; then its bytes can be read.
__device__ __forceinline__ void arrivals_wait(Arrivals* arrivals, uint32_t parity) {
#if defined(LOGO_EMULATED)
  emulation::arrivals_wait(arrivals, parity);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t complete;
  do {  // try_wait gives up after a time of the system's choice
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}"
        : "=r"(complete)
        : "r"(shared_address(arrivals)), "r"(parity)
        : "memory");
  } while (complete == 0);
#else
  __trap();
#endif
}

// One thread; addresses and size are multiples of 16. Counts its bytes off at `arrivals`.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          Arrivals* arrivals) {
#if defined(LOGO_EMULATED)
  emulation::copy_bulk(shared, global, bytes, arrivals);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(arrivals))
      : "memory");
#else
  __trap();
#endif
}

}  // namespace logo::cuda
