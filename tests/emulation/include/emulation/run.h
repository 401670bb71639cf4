// The emulated device, and running a kernel on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "emulation/types.h"

enum cudaError_t : int;

namespace emulation {

struct Settings {
  uint64_t seed = 0;        // of the order of blocks and threads, and of when copies land
  int architecture = 90;    // 80, 90, 100
  int multiprocessors = 3;  // few, so that persistent grids loop
  int shared_per_block = 227 << 10;
  int shared_per_multiprocessor = 228 << 10;
  int shared_reserved = 1 << 10;  // of every block
  int threads_per_multiprocessor = 2048;
};
extern Settings settings;

// Of the last launch.
struct Statistics {
  uint64_t blocks = 0, threads = 0, shared_bytes = 0;
  uint64_t barriers = 0;          // of a block, or named, that completed
  uint64_t warp_collectives = 0;  // shuffles, votes, __syncwarp, mma
  uint64_t mma = 0;
  uint64_t async_copies = 0;
  uint64_t bulk_copies = 0;
};
extern Statistics statistics;
extern std::vector<Statistics> earlier;  // of those before it, since the last reset
extern uint64_t launches;

// What went wrong in this host thread's last launch that failed.
const std::string& last_message();

cudaError_t run_blocks(const void* kernel, void (*call)(void*), void* data, dim3 grid, dim3 block,
                       size_t shared_bytes);

// All of it, before it returns. Never throws and never ends the process.
template <class... P, class... A>
cudaError_t run(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes,
                const A&... arguments) {
  std::tuple<P...> parameters(arguments...);
  auto body = [&] { std::apply(kernel, parameters); };
  const auto call = [](void* data) { (*static_cast<decltype(body)*>(data))(); };
  return run_blocks(reinterpret_cast<const void*>(kernel), call, &body, grid, block, shared_bytes);
}

// For kernels: ends the launch with an error.
[[noreturn]] void fail(const std::string& message);
void perhaps_let_others_run();
unsigned char* dynamic_shared();

}  // namespace emulation
