// For AddressSanitizer: kernels on arrays that the heap holds, read within bounds or past them.
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>

#include "planted.h"

using planted::Mistake;

// Threads that an error abandons never free the strings of its message.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "detect_leaks=0";
}

int main(int count, char** arguments) {
  const bool past = count > 1 && std::strcmp(arguments[1], "past") == 0;
  constexpr int kBlocks = 3, kThreads = 128, kNumbers = kBlocks * kThreads;
  const auto x = std::make_unique<float[]>(kNumbers - (past ? 1 : 0));
  const auto sums = std::make_unique<float[]>(kBlocks);
  std::fill(x.get(), x.get() + kNumbers - 1, 1.0f);
  if (!past) x[kNumbers - 1] = 1;
  // Threads that an error abandons leave the sanitizer's marks on their stacks.
  const auto out = std::make_unique<int[]>(5 * kThreads);
  if (planted::uniform_barrier(out.get(), kThreads, Mistake::part_of_block) == cudaSuccess)
    return 2;
  if (planted::block_sum(x.get(), sums.get(), kBlocks, kThreads, Mistake::none) != cudaSuccess) {
    return 3;
  }
  std::printf("%g\n", std::accumulate(sums.get(), sums.get() + kBlocks, 0.0f));
  return 0;
}
