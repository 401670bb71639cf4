// A thread's indices, and the places where threads of a block and of a warp meet.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/types.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulation {

enum class BlockBarrier { plain, any, all, count };
int block_barrier(BlockBarrier kind, bool predicate);

void named_barrier_sync(int id, int threads);
void named_barrier_arrive(int id, int threads);

enum class Collective {
  sync,
  shuffle,
  ballot,
  any,
  all,
  add,
  min,
  max,
  min_signed,
  max_signed,
  mma,
  matrices
};
// Waits for the lanes of the mask and gives each its result. `source` is the lane that a shuffle
// reads.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, int source = 0);
int lane();

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed);

template <class T>
inline T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(Collective::shuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier(emulation::BlockBarrier::plain, false); }
inline int __syncthreads_or(int predicate) {
  return emulation::block_barrier(emulation::BlockBarrier::any, predicate != 0);
}
inline int __syncthreads_and(int predicate) {
  return emulation::block_barrier(emulation::BlockBarrier::all, predicate != 0);
}
inline int __syncthreads_count(int predicate) {
  return emulation::block_barrier(emulation::BlockBarrier::count, predicate != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
  emulation::warp_collective(emulation::Collective::sync, mask, 0);
}

// Lanes are taken modulo the width; a source outside the segment leaves a lane its own value.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int first = emulation::lane() & -width;
  return emulation::shuffle(mask, value, first + (source & (width - 1)));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int self = emulation::lane(), source = self - int(delta);
  return emulation::shuffle(mask, value, source < (self & -width) ? self : source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int self = emulation::lane(), source = self + int(delta);
  return emulation::shuffle(mask, value, source >= (self & -width) + width ? self : source);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  const int self = emulation::lane(), source = self ^ bits;
  return emulation::shuffle(mask, value, source >= (self & -width) + width ? self : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return unsigned(emulation::warp_collective(emulation::Collective::ballot, mask, predicate != 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return int(emulation::warp_collective(emulation::Collective::any, mask, predicate != 0));
}
inline int __all_sync(unsigned mask, int predicate) {
  return int(emulation::warp_collective(emulation::Collective::all, mask, predicate != 0));
}
inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  return unsigned(emulation::warp_collective(emulation::Collective::add, mask, value));
}
inline int __reduce_add_sync(unsigned mask, int value) {
  return int(__reduce_add_sync(mask, unsigned(value)));
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned value) {
  return unsigned(emulation::warp_collective(emulation::Collective::min, mask, value));
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  return unsigned(emulation::warp_collective(emulation::Collective::max, mask, value));
}
inline int __reduce_min_sync(unsigned mask, int value) {
  return int(emulation::warp_collective(emulation::Collective::min_signed, mask, unsigned(value)));
}
inline int __reduce_max_sync(unsigned mask, int value) {
  return int(emulation::warp_collective(emulation::Collective::max_signed, mask, unsigned(value)));
}
