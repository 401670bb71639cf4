// Images are divided among the threads of torch's OpenMP pool in equal runs of neighbours.
#pragma once

#include <cstdint>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace logo {
namespace cpu {
namespace {

// Waking a second thread costs some tens of microseconds, in which one thread handles about this
// many elements of ten-crop images.
constexpr int64_t kParallelElements = 64 * 1024;

inline int threads_for(int64_t images, int64_t elements_per_image, int threads) {
  if (images * elements_per_image < kParallelElements) return 1;
  return threads < images ? threads : int(images);
}

struct Share {
  int64_t first, last;
};

// The calling thread's part of `images`, inside a parallel region.
inline Share share_of(int64_t images) {
#if defined(_OPENMP)
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
#else
  const int64_t threads = 1, thread = 0;
#endif
  return {images * thread / threads, images * (thread + 1) / threads};
}

}  // namespace
}  // namespace cpu
}  // namespace logo
