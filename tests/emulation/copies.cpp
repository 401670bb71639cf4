#include <cstring>
#include <string>
#include <vector>

#include "block.h"
#include "shared.h"

namespace emulation {
namespace {

struct AsyncCopy {
  void* to;
  const void* from;
  int group;
  bool landed;
};
struct ThreadCopies {
  std::vector<AsyncCopy> under_way;
  int group = 0;  // the one that is open
};
std::vector<ThreadCopies> per_thread;

struct State {
  uint64_t* address;
  uint32_t count, missing;  // arrivals of a phase, and of them those to come
  int64_t bytes = 0;        // to come; below zero where copies land before they are expected
  uint32_t phase = 0;
  int by;  // the thread that made it
  bool fenced = false;
  std::vector<int> waits;
};
std::vector<State> all_arrivals;
constexpr uint64_t kMagic = uint64_t(0x6d626172) << 32;

struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  size_t arrivals;
};
std::vector<BulkCopy> bulk_under_way;

bool aligned(const void* address, size_t to) {
  return reinterpret_cast<uintptr_t>(address) % to == 0;
}

void check_copy(const char* name, const void* to, const void* from, uint32_t bytes) {
  std::string why;
  if (!aligned(to, 16) || !aligned(from, 16) || bytes % 16 != 0) {
    fail(std::string(name) + ": addresses and size must be multiples of 16");
  }
  if (!within_shared(to, bytes, &why)) {
    fail(std::string(name) + " out of bounds of shared memory: " + why);
  }
}

void land_groups(ThreadCopies& copies, int before) {
  auto& list = copies.under_way;
  size_t kept = 0;
  for (const AsyncCopy& copy : list) {
    if (copy.group < before) {
      if (!copy.landed) std::memcpy(copy.to, copy.from, 16);
    } else {
      list[kept++] = copy;
    }
  }
  list.resize(kept);
}

size_t find(const uint64_t* arrivals) {
  std::string why;
  if (settings.architecture < 90) fail("mbarriers need sm_90");
  if (!aligned(arrivals, 8)) fail("an mbarrier must be aligned to 8 bytes");
  if (!within_shared(arrivals, 8, &why)) fail("an mbarrier out of bounds of shared memory: " + why);
  const size_t number = *arrivals & 0xffffffff;
  if (*arrivals >> 32 != kMagic >> 32 || number >= all_arrivals.size() ||
      all_arrivals[number].address != arrivals) {
    fail("mbarrier used before its initialisation, or overwritten: " + name_shared(arrivals));
  }
  return number;
}

void advance(State& state) {
  if (state.missing != 0 || state.bytes != 0) return;
  ++state.phase;
  state.missing = state.count;
  for (const int thread : state.waits) block.make_ready(thread);
  state.waits.clear();
}

void land(const BulkCopy& copy) {
  std::memcpy(copy.to, copy.from, copy.bytes);
  State& state = all_arrivals[copy.arrivals];
  state.bytes -= copy.bytes;
  advance(state);
}

}  // namespace

void start_copies() {
  per_thread.resize(1024);
  for (size_t i = 0; i < block.threads.size(); ++i) {
    per_thread[i].under_way.clear();
    per_thread[i].group = 0;
  }
  all_arrivals.clear();
  bulk_under_way.clear();
}

void copy_async(void* shared, const void* global) {
  check_copy("cp.async", shared, global, 16);
  ThreadCopies& copies = per_thread[block.current];
  const bool now = block.random.one_in(2);
  if (now) {
    std::memcpy(shared, global, 16);
  } else {
    poison(shared, 16);  // until the wait the bytes may be anything, not only the old ones
  }
  copies.under_way.push_back({shared, global, copies.group, now});
  ++statistics.async_copies;
}

void copy_commit() { ++per_thread[block.current].group; }

void copy_wait(int pending) {
  ThreadCopies& copies = per_thread[block.current];
  // Those without a commit are of no group, and stay under way.
  land_groups(copies, copies.group - pending);
}

void finish_thread_copies(int thread) {
  land_groups(per_thread[thread], per_thread[thread].group + 1);
}

void arrivals_init(uint64_t* arrivals, uint32_t count) {
  std::string why;
  if (settings.architecture < 90) fail("mbarriers need sm_90");
  if (!aligned(arrivals, 8)) fail("an mbarrier must be aligned to 8 bytes");
  if (!within_shared(arrivals, 8, &why)) fail("an mbarrier out of bounds of shared memory: " + why);
  if (count == 0 || count >= 1u << 20) fail("an mbarrier of " + std::to_string(count));
  for (const State& state : all_arrivals) {
    if (state.address == arrivals) fail("mbarrier initialised twice: " + name_shared(arrivals));
  }
  *arrivals = kMagic | all_arrivals.size();
  State state;
  state.address = arrivals;
  state.count = state.missing = count;
  state.by = block.current;
  all_arrivals.push_back(state);
}

void arrivals_fence_init() {
  for (State& state : all_arrivals) state.fenced |= state.by == block.current;
}

void arrivals_expect(uint64_t* arrivals, uint32_t bytes) {
  State& state = all_arrivals[find(arrivals)];
  state.bytes += bytes;
  if (state.bytes >= 1 << 20) fail("mbarrier: more bytes expected than it can count");
  if (state.missing == 0) {  // the phase waits for bytes alone
    fail("mbarrier: more arrivals than the " + std::to_string(state.count) + " of a phase");
  }
  --state.missing;
  advance(state);
}

void arrivals_wait(uint64_t* arrivals, uint32_t parity) {
  const size_t number = find(arrivals);
  if (parity > 1) fail("mbarrier: a parity is 0 or 1");
  perhaps_let_others_run();
  // After a turn of the others the phase may be over, and the next one too, as on a device.
  while ((all_arrivals[number].phase & 1) == parity) {
    all_arrivals[number].waits.push_back(block.current);
    block.self().barrier = int(number);
    block.self().parity = parity;
    wait_until_ready(Wait::arrivals);
  }
}

void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* arrivals) {
  check_copy("cp.async.bulk", shared, global, bytes);
  const size_t number = find(arrivals);
  if (!all_arrivals[number].fenced) fail("cp.async.bulk: no fence after the mbarrier's init");
  ++statistics.bulk_copies;
  const BulkCopy copy{shared, global, bytes, number};
  if (block.random.one_in(2)) {
    land(copy);
  } else {
    poison(shared, bytes);
    bulk_under_way.push_back(copy);
  }
}

// Called when no thread can go on: no sooner is the copy needed.
bool land_a_bulk_copy() {
  if (bulk_under_way.empty()) return false;
  const size_t i = block.random.below(uint32_t(bulk_under_way.size()));
  const BulkCopy copy = bulk_under_way[i];
  bulk_under_way[i] = bulk_under_way.back();
  bulk_under_way.pop_back();
  land(copy);
  return true;
}

void finish_copies() {
  if (bulk_under_way.empty()) return;
  block.failed = true;
  block.message = "the block ends with " + std::to_string(bulk_under_way.size()) +
                  " bulk copies under way that nobody waited for";
}

std::string describe_arrivals(const Thread& thread) {
  const State& state = all_arrivals[thread.barrier];
  return "at the mbarrier at " + name_shared(state.address) + " for parity " +
         std::to_string(thread.parity) + " (phase " + std::to_string(state.phase) + ": " +
         std::to_string(state.missing) + " arrivals and " + std::to_string(state.bytes) +
         " bytes missing)";
}

}  // namespace emulation
