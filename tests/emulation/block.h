// The block that runs: its threads, what each waits for, and whose turn it is.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "random.h"

namespace emulation {

enum class Wait : uint8_t { nothing, block, named, warp, arrivals, exited };

struct Thread {
  uint3 index;
  Wait wait = Wait::nothing;
  // Of the warp collective that the thread waits at.
  Collective collective;
  unsigned mask;
  uint64_t value, result;
  int source;
  int barrier;  // number of the named barrier, or of the Arrivals, that it waits at
  uint32_t parity;
};

struct Warp {
  uint32_t ready = 0;    // lanes that can go on
  uint32_t waiting = 0;  // lanes at a warp collective
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  uint32_t ready_warps = 0;  // with a ready lane
  int live = 0;              // threads that have not exited
  int current = 0;
  Random random;
  bool failed = false;
  std::string message;

  Thread& self() { return threads[current]; }
  void make_ready(int thread) {
    threads[thread].wait = Wait::nothing;
    warps[thread / 32].ready |= 1u << (thread % 32);
    ready_warps |= 1u << (thread / 32);
  }
  void make_ready(int warp, uint32_t lanes) {
    warps[warp].ready |= lanes;
    ready_warps |= 1u << warp;
  }
};
extern Block block;

// From within a thread: until somebody makes it ready.
void wait_until_ready(Wait what);

// Every part's own state at the start and the end of a block.
void start_block_barriers();
void start_copies();
void finish_thread_copies(int thread);
void finish_copies();
// One of the bulk copies under way; false if there is none.
bool land_a_bulk_copy();

// What a thread waits for, for the report of a deadlock.
std::string describe_barrier(const Thread& thread);
std::string describe_collective(const Thread& thread);
std::string describe_arrivals(const Thread& thread);

}  // namespace emulation
