// A loss's results from the contributions of its images.
#pragma once

#include "cpu/finite.h"
#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

// per_image [1 + count, B]: totals, then `count` terms, which are left out where `terms` is null.
// Summed in the order of the images: the same on every run and for any number of threads. In units
// of `unit`.
template <class T>
void reduce(const double* per_image, int64_t images, int count, Reduction reduction, void* total,
            void* terms, double unit = 1) {
  for (int k = 0; k <= (terms == nullptr ? 0 : count); ++k) {
    const double* const from = per_image + k * images;
    const int64_t width = reduction == Reduction::none ? images : 1;
    T* const to = k == 0 ? static_cast<T*>(total) : static_cast<T*>(terms) + (k - 1) * width;
    if (reduction == Reduction::none) {
      for (int64_t image = 0; image < images; ++image) to[image] = finite<T>(from[image] / unit);
      continue;
    }
    double sum = 0;
    for (int64_t image = 0; image < images; ++image) sum += from[image];
    *to = finite<T>((reduction == Reduction::mean ? sum / double(images) : sum) / unit);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace logo
