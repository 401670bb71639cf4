// Barriers of the block: __syncthreads() and its kin, and the named ones.
#include <array>
#include <bitset>

#include "block.h"

namespace emulation {
namespace {

struct State {
  int arrived = 0;
  int threads = 0;        // that the first to arrive said it waits for
  BlockBarrier kind{};    // of barrier 0
  int predicates = 0;     // that were true
  std::bitset<1024> who;  // has arrived
  std::bitset<1024> waits;
};
std::array<State, 16> barriers;

const char* const kKinds[] = {"__syncthreads", "__syncthreads_or", "__syncthreads_and",
                              "__syncthreads_count"};

void complete(State& state) {
  for (size_t i = 0; i < block.threads.size(); ++i) {
    if (state.waits[i]) block.make_ready(int(i));
  }
  state = State();
  ++statistics.barriers;
}

// The threads of a warp come to a barrier together on a device, where they are counted as a warp.
void check_whole_warps(const State& state, int id) {
  for (size_t i = 0; i < block.threads.size(); ++i) {
    if (state.who[i] != state.who[i / 32 * 32]) {
      fail("named barrier " + std::to_string(id) + " with a part of warp " +
           std::to_string(i / 32));
    }
  }
}

void arrive(int id, int threads, bool waits) {
  // Number 0 belongs to __syncthreads().
  if (id < 1 || id > 15) fail("named barrier " + std::to_string(id) + ", of 1 to 15");
  const std::string name = "named barrier " + std::to_string(id);
  if (threads <= 0 || threads % 32 != 0 || threads > int(block.warps.size()) * 32) {
    fail(name + " of " + std::to_string(threads) + " threads: not whole warps of the block");
  }
  State& state = barriers[id];
  if (state.arrived > 0 && state.threads != threads) {
    fail(name + " of " + std::to_string(threads) + " threads, while others wait for " +
         std::to_string(state.threads));
  }
  if (state.who[block.current]) fail(name + " met twice by one thread before it is complete");
  state.threads = threads;
  state.who.set(block.current);
  if (waits) state.waits.set(block.current);
  const bool last = ++state.arrived == threads;
  if (last) {
    check_whole_warps(state, id);
    complete(state);
  }
  if (!waits) return;
  block.self().barrier = id;
  wait_until_ready(last ? Wait::nothing : Wait::named);
}

}  // namespace

void start_block_barriers() { barriers.fill(State()); }

int block_barrier(BlockBarrier kind, bool predicate) {
  State& state = barriers[0];
  const int threads = int(block.threads.size());
  if (state.arrived > 0 && state.kind != kind) {
    fail(std::string("divergent barrier: ") + kKinds[int(kind)] + ", while others wait at " +
         kKinds[int(state.kind)]);
  }
  state.kind = kind;
  state.threads = threads;
  state.predicates += predicate;
  state.waits.set(block.current);
  block.self().barrier = 0;
  if (++state.arrived == threads) {
    const int count = state.predicates;
    const int result = kind == BlockBarrier::count ? count
                       : kind == BlockBarrier::any ? count > 0
                                                   : count == threads;
    for (Thread& thread : block.threads) thread.result = uint64_t(result);
    complete(state);
    wait_until_ready(Wait::nothing);
  } else {
    wait_until_ready(Wait::block);
  }
  return int(block.self().result);
}

void named_barrier_sync(int id, int threads) { arrive(id, threads, true); }
void named_barrier_arrive(int id, int threads) { arrive(id, threads, false); }

std::string describe_barrier(const Thread& thread) {
  const State& state = barriers[thread.barrier];
  const std::string name = thread.wait == Wait::block
                               ? kKinds[int(state.kind)]
                               : "named barrier " + std::to_string(thread.barrier);
  return "at " + name + " (" + std::to_string(state.arrived) + " of " +
         std::to_string(state.threads) + " threads)";
}

}  // namespace emulation
