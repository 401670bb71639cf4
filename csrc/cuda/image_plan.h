// How images are laid over a GPU: a pure function of their sizes and of the device's limits.
//
// The trade-offs behind the numbers, on an H100 or H200 (132 multiprocessors, 228 KiB of shared
// memory each, about 25 KiB of reads in flight on each to keep DRAM busy):
//
// - A block keeps two stages, so that the next image is on its way while one is worked on, and a
//   multiprocessor keeps two blocks, so that one of them computes while the other waits at a
//   barrier. Twelve rows of 2048 halves are 48 KiB: two blocks of two stages each. On an H200 such
//   images took 263 µs (8192 of them) where one block of 16 warps took 497.
// - Where only one block fits, a third stage takes its place, if there is room for it.
// - A warp for 6 KiB of an image: small images get a warp each, and none waits for another's.
// - An image of which two do not fit a block's shared memory is walked in chunks instead, once for
//   the products and once for the gradient; the second walk finds it in L2 as long as all images at
//   work stay below some 35 MB. Smaller chunks let two blocks share a multiprocessor.
#pragma once

#include <cstdint>

#include "cuda/limits.h"
#include "logo/macros.h"

namespace logo {
namespace cuda {

// Rows of one image that are read. The Gram matrix of 128 is 66 KiB of shared memory.
constexpr int kMaxRows = 128;
constexpr int kMaxThreads = 512;
constexpr int kMaxStages = 4;
constexpr int64_t kBytesPerWarp = 6 * 1024;
constexpr int64_t kChunkBytes = 20 * 1024;  // three of them twice in the 164 KiB of an A100
constexpr int kLeastChunk = 64;             // bytes of a row: one step of the tensor cores
struct ImagePlan {
  int threads = 0;
  int stages = 0;
  int64_t chunk = 0;   // columns of a stage
  int64_t chunks = 0;  // stages that make up an image
  int pitch = 0;       // bytes from row to row of a stage
  int gram_rows = 0;   // rows, padded to whole tiles
  int slices = 0;      // parts of D whose products are summed apart
  int blocks = 0;      // of a multiprocessor: as many as its shared memory holds
  int64_t stage_bytes = 0;
  int64_t shared_bytes = 0;

  bool resident() const { return chunks == 1; }
};

// The pitch of a Gram matrix in shared memory: odd, so that a walk down a column meets every bank.
LOGO_FUNCTION int gram_pitch(int gram_rows) { return gram_rows + 1; }

// Tiles on and below the diagonal of a Gram matrix.
LOGO_FUNCTION int triangle(int tiles) { return tiles * (tiles + 1) / 2; }

// Into how many parts of D a matrix of few tiles is cut, so that every warp has one.
inline int slices_for(int rows, int tile, int warps) {
  const int tiles = triangle((rows + tile - 1) / tile);
  return tiles >= warps ? 1 : warps / tiles;
}

// 16-byte loads of 8 lanes read a vector of eight neighbouring rows in the products of halves, and
// two vectors, four apart, of four rows in their gradients (gram.cuh, weights.cuh): a pitch of an
// odd number of vectors puts all eight on different banks.
inline int pitch_for(int64_t columns, int element_bytes) {
  const int64_t vectors = (columns * element_bytes + 15) / 16;
  return int(vectors / 2 * 2 + 1) * 16;
}

// Floats that a block keeps for each row: facts.cuh.
constexpr int kFloatsPerRow = 10;

inline int64_t overhead_bytes(const ImagePlan& plan, int rows) {
  return int64_t(plan.slices) * plan.gram_rows * gram_pitch(plan.gram_rows) * 4 +
         int64_t(rows) * kFloatsPerRow * 4 + kMaxStages * 8 + 256;
}

inline int warps_for(int64_t bytes) {
  int warps = 1;
  while (warps < kMaxThreads / 32 && warps * kBytesPerWarp < bytes) warps *= 2;
  return warps;
}

// For rows ≤ kMaxRows of dim numbers, element_bytes each. threads is 0 where the device has not
// even the shared memory for the smallest chunks.
inline ImagePlan plan_for(int rows, int64_t dim, int element_bytes, const Limits& limits) {
  ImagePlan plan;
  const int tile = element_bytes == 2 ? 16 : 4;
  plan.gram_rows = (rows + 15) / 16 * 16;
  // Whether so many blocks, or one, fit.
  const auto lay = [&](int64_t chunk, int stages, int blocks = 1) {
    plan.chunk = chunk;
    plan.chunks = (dim + chunk - 1) / chunk;
    plan.stages = stages;
    plan.pitch = pitch_for(chunk, element_bytes);
    plan.stage_bytes = (int64_t(rows) * plan.pitch + 127) / 128 * 128;
    plan.threads = 32 * warps_for(int64_t(rows) * chunk * element_bytes);
    plan.slices = slices_for(rows, tile, plan.threads / 32);
    plan.shared_bytes = plan.stages * plan.stage_bytes + overhead_bytes(plan, rows);
    plan.blocks =
        int((limits.shared_per_block + kReservedBytes) / (plan.shared_bytes + kReservedBytes));
    return plan.blocks >= blocks;
  };
  const bool whole = int64_t(rows) * dim * element_bytes <= limits.shared_per_block;
  if (whole && (lay(dim, 2, 2) || lay(dim, 3) || lay(dim, 2))) return plan;
  const int64_t least = kLeastChunk / element_bytes;
  const auto columns = [&](int64_t bytes) {
    const int64_t chunk = bytes / element_bytes / rows / least * least;
    return chunk < least ? least : chunk < dim ? chunk : dim;
  };
  if (lay(columns(kChunkBytes), 3, 2) || lay(columns(kChunkBytes / 2), 3, 2)) return plan;
  for (int64_t bytes = kChunkBytes;; bytes /= 2) {
    if (lay(columns(bytes), 3) || lay(columns(bytes), 2)) return plan;
    if (columns(bytes) <= least) return ImagePlan();
  }
}

}  // namespace cuda
}  // namespace logo
