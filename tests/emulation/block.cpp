#include "block.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <unordered_map>

#include "fiber.h"
#include "shared.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {

Settings settings;
Statistics statistics;
std::vector<Statistics> earlier;
uint64_t launches = 0;
Block block;

namespace {

void (*kernel_call)(void*);
void* kernel_data;

void run_thread(int) { kernel_call(kernel_data); }

void turn(int thread) {
  block.current = thread;
  threadIdx = block.threads[thread].index;
  if (switch_to_fiber(thread) && !block.failed) {
    finish_thread_copies(thread);
    block.threads[thread].wait = Wait::exited;
    --block.live;
  }
}

int random_ready_warp() {
  const int first = int(block.random.below(32));
  const uint32_t after = block.ready_warps >> first;
  return after != 0 ? first + __builtin_ctz(after) : __builtin_ctz(block.ready_warps);
}

// Lanes that are ready, in an order that is a random one of 16 · 32 · 32.
void run_warp(int warp) {
  uint32_t lanes = block.warps[warp].ready;
  const uint32_t random = block.random.next();
  // Now and then a part of them, so that some run ahead within the warp as well.
  if (random >> 29 == 0) {
    const uint32_t part = lanes & block.random.next();
    if (part != 0) lanes = part;
  }
  block.warps[warp].ready &= ~lanes;
  if (block.warps[warp].ready == 0) block.ready_warps &= ~(1u << warp);
  const uint32_t step = random | 1, offset = random >> 5, flip = random >> 10;
  for (uint32_t i = 0; i < 32 && !block.failed; ++i) {
    const uint32_t lane = ((i * step + offset) ^ flip) & 31;
    if (lanes >> lane & 1) turn(warp * 32 + int(lane));
  }
}

std::string ranges(const std::vector<int>& threads) {
  std::string text = threads.size() == 1 ? "thread " : "threads ";
  for (size_t i = 0; i < threads.size();) {
    size_t end = i + 1;
    while (end < threads.size() && threads[end] == threads[end - 1] + 1) ++end;
    if (i > 0) text += ", ";
    text += std::to_string(threads[i]);
    if (end - i > 1) text += "-" + std::to_string(threads[end - 1]);
    i = end;
  }
  return text;
}

std::string describe(const Thread& thread) {
  switch (thread.wait) {
    case Wait::nothing: return "can run";
    case Wait::exited: return "exited";
    case Wait::warp: return describe_collective(thread);
    case Wait::arrivals: return describe_arrivals(thread);
    case Wait::block:
    case Wait::named: return describe_barrier(thread);
  }
  return "";
}

// Nobody can go on.
std::string describe_deadlock() {
  std::map<std::string, std::vector<int>> groups;
  bool at_block = false, at_warp = false;
  for (int i = 0; i < int(block.threads.size()); ++i) {
    const Thread& thread = block.threads[i];
    at_block |= thread.wait == Wait::block;
    at_warp |= thread.wait == Wait::warp;
    groups[describe(thread)].push_back(i);
  }
  std::string text = at_block  ? "divergent barrier"
                     : at_warp ? "divergent warp collective"
                               : "deadlock";
  const char* separator = ": ";
  for (const auto& [what, threads] : groups) {
    text += separator + ranges(threads) + " " + what;
    separator = "; ";
  }
  return text;
}

void fail_between(const std::string& message) {
  block.failed = true;
  block.message = message;
}

void start_block(int threads, size_t shared_bytes) {
  block.threads.resize(threads);
  block.warps.assign((threads + 31) / 32, Warp());
  block.ready_warps = 0;
  block.live = threads;
  start_shared(shared_bytes);
  start_block_barriers();
  start_copies();
  prepare_fibers(threads, run_thread);
  for (int i = 0; i < threads; ++i) {
    block.threads[i].index = {unsigned(i) % blockDim.x, unsigned(i) / blockDim.x % blockDim.y,
                              unsigned(i) / blockDim.x / blockDim.y};
    block.make_ready(i);
  }
}

// Warps that take turns after every step hide how far one may run ahead of another; those that
// run as far as they can hide the opposite.
void run_block() {
  static constexpr uint32_t kSteps[] = {1, 4, 64};
  const uint32_t steps = kSteps[block.random.below(3)];
  while (block.live > 0 && !block.failed) {
    if (block.ready_warps == 0) {
      if (!land_a_bulk_copy()) fail_between(describe_deadlock());
      continue;
    }
    const int warp = random_ready_warp();
    do {
      run_warp(warp);
    } while (!block.failed && block.warps[warp].ready != 0 && !block.random.one_in(steps));
  }
  if (!block.failed) finish_copies();
  if (!block.failed) {
    const std::string written = check_guards();
    if (!written.empty()) fail_between(written);
  }
}

std::mutex one_launch;
thread_local std::string failure;
thread_local cudaError_t last_error = cudaSuccess;
std::unordered_map<const void*, int> allowed_shared;  // of kernels that asked for more than 48 KB

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

int allowed(const void* kernel) {
  const auto found = allowed_shared.find(kernel);
  return std::min(found == allowed_shared.end() ? 48 << 10 : found->second,
                  settings.shared_per_block);
}

}  // namespace

const std::string& last_message() { return failure; }

void fail(const std::string& message) {
  const auto number = std::to_string(block.current);
  fail_between(message + " (thread " + number + ")");
  for (;;) switch_back();  // never to return: the block is given up
}

void wait_until_ready(Wait what) {
  block.self().wait = what;
  switch_back();
}

void perhaps_let_others_run() {
  if (!block.random.one_in(8)) return;
  block.make_ready(block.current);
  switch_back();
}

cudaError_t run_blocks(const void* kernel, void (*call)(void*), void* data, dim3 grid, dim3 threads,
                       size_t shared_bytes) {
  const std::lock_guard<std::mutex> lock(one_launch);
  const uint64_t count = uint64_t(grid.x) * grid.y * grid.z;
  const uint64_t per_block = uint64_t(threads.x) * threads.y * threads.z;
  if (count == 0 || count > 0x7fffffff || grid.y > 65535 || grid.z > 65535 || per_block == 0 ||
      per_block > 1024) {
    return remember(cudaErrorInvalidConfiguration);
  }
  if (shared_bytes > size_t(allowed(kernel)) || shared_bytes > kMostShared) {
    return remember(cudaErrorInvalidValue);
  }
  if (launches++ > 0) earlier.push_back(statistics);
  statistics = Statistics();
  statistics.blocks = count;
  statistics.threads = per_block;
  statistics.shared_bytes = shared_bytes;
  kernel_call = call;
  kernel_data = data;
  gridDim = grid;
  blockDim = threads;
  block.random = Random(settings.seed);
  block.failed = false;
  std::vector<uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (uint64_t i = count; i > 1; --i) std::swap(order[i - 1], order[block.random.below(i)]);
  for (const uint32_t number : order) {
    blockIdx = {number % grid.x, number / grid.x % grid.y, number / grid.x / grid.y};
    start_block(int(per_block), shared_bytes);
    run_block();
    if (block.failed) {
      failure = "block " + std::to_string(number) + ": " + block.message;
      return remember(cudaErrorLaunchFailure);
    }
  }
  return cudaSuccess;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const std::lock_guard<std::mutex> lock(one_launch);
  if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
  if (value < 0 || value > settings.shared_per_block) return remember(cudaErrorInvalidValue);
  allowed_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t get_attributes(cudaFuncAttributes* attributes, const void* kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->binaryVersion = attributes->ptxVersion = settings.architecture;
  attributes->maxDynamicSharedSizeBytes = allowed(kernel);
  return cudaSuccess;
}

cudaError_t occupancy(int* blocks, int threads, size_t shared_bytes) {
  if (threads <= 0 || threads > 1024) return remember(cudaErrorInvalidValue);
  const int by_threads = settings.threads_per_multiprocessor / ((threads + 31) / 32 * 32);
  const size_t taken = shared_bytes + settings.shared_reserved;
  const int by_shared = int(settings.shared_per_multiprocessor / taken);
  *blocks =
      shared_bytes > size_t(settings.shared_per_block) ? 0 : std::min({by_threads, by_shared, 32});
  return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaPeekAtLastError() { return emulation::last_error; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = emulation::last_error;
  emulation::last_error = cudaSuccess;
  return error;
}
