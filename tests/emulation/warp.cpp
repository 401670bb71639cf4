// Where lanes of a warp meet: votes, shuffles, reductions. mma.cpp has the product of matrices.
#include <string>

#include "block.h"
#include "fiber.h"
#include "mma.h"

namespace emulation {
namespace {

const char* const kNames[] = {"__syncwarp",
                              "a shuffle",
                              "__ballot_sync",
                              "__any_sync",
                              "__all_sync",
                              "__reduce_add_sync",
                              "__reduce_min_sync",
                              "__reduce_max_sync",
                              "__reduce_min_sync",
                              "__reduce_max_sync",
                              "mma",
                              "ldmatrix"};

uint64_t reduced(Collective kind, uint64_t so_far, uint64_t value) {
  const auto first = uint32_t(so_far), second = uint32_t(value);
  switch (kind) {
    case Collective::ballot:
    case Collective::any: return so_far | value;
    case Collective::all: return so_far & value;
    case Collective::add: return uint32_t(first + second);
    case Collective::min: return min(first, second);
    case Collective::max: return max(first, second);
    case Collective::min_signed: return uint32_t(min(int(first), int(second)));
    case Collective::max_signed: return uint32_t(max(int(first), int(second)));
    default: return 0;
  }
}

// Results for the lanes of the mask, all of which are here.
void combine(Thread* lanes, Collective kind, uint32_t mask) {
  if (kind == Collective::sync) return;
  if (kind == Collective::mma) return multiply(lanes);
  if (kind == Collective::matrices) return load(lanes);
  if (kind == Collective::shuffle) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      Thread& thread = lanes[__builtin_ctz(rest)];
      // A value from a lane that takes no part is undefined: here NaN, and no small number.
      thread.result = mask >> thread.source & 1 ? lanes[thread.source].value : 0xfff7fffbfff7fffb;
    }
    return;
  }
  uint64_t result = 0;
  bool first = true;
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const uint64_t value = kind == Collective::ballot ? lanes[lane].value << lane  //
                                                      : lanes[lane].value;
    result = first ? value : reduced(kind, result, value);
    first = false;
  }
  for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
    lanes[__builtin_ctz(rest)].result = result;
  }
}

}  // namespace

int lane() { return block.current % 32; }

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int source) {
  Thread& self = block.self();
  const int number = block.current / 32, own = block.current % 32;
  Warp& warp = block.warps[number];
  if (!(mask >> own & 1)) {
    fail(std::string("divergent warp collective: ") + kNames[int(kind)] +
         " by a lane that is not in its own mask");
  }
  self.collective = kind;
  self.mask = mask;
  self.value = value;
  self.source = source;
  self.wait = Wait::warp;
  warp.waiting |= 1u << own;
  if ((warp.waiting & mask) == mask) {
    Thread* lanes = &block.threads[number * 32];
    bool together = true;  // others may wait for lanes that first meet elsewhere
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const Thread& thread = lanes[__builtin_ctz(rest)];
      together &= thread.mask == mask && thread.collective == kind;
    }
    if (together) {
      combine(lanes, kind, mask);
      for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        lanes[__builtin_ctz(rest)].wait = Wait::nothing;
      }
      warp.waiting &= ~mask;
      block.make_ready(number, mask);
      ++statistics.warp_collectives;
    }
  }
  switch_back();
  return self.result;
}

std::string describe_collective(const Thread& thread) {
  char mask[16];
  snprintf(mask, sizeof mask, "0x%08x", thread.mask);
  return std::string("at ") + kNames[int(thread.collective)] + " with mask " + mask;
}

}  // namespace emulation
