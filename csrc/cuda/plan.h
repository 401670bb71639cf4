// How a problem is laid over a GPU: a pure function of its sizes and of the device's limits.
//
// What the numbers weigh against each other on an H100 or H200 (132 multiprocessors, 228 KiB of
// shared memory each, about 25 KiB of reads in flight on each to keep DRAM busy):
//
// - A block keeps two stages, so that the next image is on its way while one is worked on. Ten
//   crops of 2048 halves are 40 KiB: two blocks of two stages each. Ten of 256: twenty blocks.
// - A warp for 6 KiB of an image: small images get a warp each, and none waits for another's.
// - An image of which two do not fit a block's shared memory is walked in chunks instead, once for
//   the products and once for the gradient; the second walk finds it in L2 as long as all images at
//   work stay below some 35 MB.
#pragma once

#include <cstdint>

#include "logo/macros.h"

namespace logo {
namespace cuda {

// Rows of one image that are read. The Gram matrix of 128 is 66 KiB of shared memory.
constexpr int kMaxRows = 128;
constexpr int kMaxThreads = 512;
constexpr int kMaxStages = 4;
constexpr int64_t kBytesPerWarp = 6 * 1024;
constexpr int64_t kChunkBytes = 20 * 1024;  // three of them twice in the 164 KiB of an A100
constexpr int kLeastChunk = 32;  // columns: four vectors of halves, one step of the tensor cores

// The workspace of a launch: a counter, and four sums in fp64 from each block.
constexpr int64_t kFoundOffset = 128;  // apart from the counter, which all blocks write
constexpr int64_t kFoundBytes = 4 * 8;

struct Limits {
  int multiprocessors;
  int64_t shared_per_block;
};

struct Plan {
  int threads = 0;
  int stages = 0;
  int64_t chunk = 0;   // columns of a stage
  int64_t chunks = 0;  // stages that make up an image
  int pitch = 0;       // bytes from row to row of a stage
  int gram_rows = 0;   // rows, padded to whole tiles
  int slices = 0;      // parts of D whose products are summed apart
  int64_t stage_bytes = 0;
  int64_t shared_bytes = 0;

  bool resident() const { return chunks == 1; }
};

// Of the Gram matrix in shared memory: odd, so that a walk down a column meets every bank.
LOGO_FUNCTION int gram_pitch(int gram_rows) { return gram_rows + 1; }

// Tiles on and below the diagonal of a Gram matrix.
LOGO_FUNCTION int triangle(int tiles) { return tiles * (tiles + 1) / 2; }

// Into how many parts of D a matrix of few tiles is cut, so that every warp has one.
inline int slices_for(int rows, int tile, int warps) {
  const int tiles = triangle((rows + tile - 1) / tile);
  return tiles >= warps ? 1 : warps / tiles;
}

// 16-byte loads of 8 lanes read two rows, 64 bytes each, in the products of halves: a pitch of
// 64 bytes beyond a multiple of 128 puts them on different banks.
inline int pitch_for(int64_t columns, int element_bytes) {
  int64_t bytes = (columns * element_bytes + 15) / 16 * 16;
  while (bytes % 128 != 64) bytes += 16;
  return int(bytes);
}

// Floats that a block keeps for each row: facts.cuh.
constexpr int kFloatsPerRow = 8;

inline int64_t overhead_bytes(const Plan& plan, int rows) {
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
inline Plan plan_for(int rows, int64_t dim, int element_bytes, const Limits& limits) {
  Plan plan;
  const int tile = element_bytes == 2 ? 16 : 4;
  plan.gram_rows = (rows + 15) / 16 * 16;
  const auto lay = [&](int64_t chunk, int stages) {
    plan.chunk = chunk;
    plan.chunks = (dim + chunk - 1) / chunk;
    plan.stages = stages;
    plan.pitch = pitch_for(chunk, element_bytes);
    plan.stage_bytes = (int64_t(rows) * plan.pitch + 127) / 128 * 128;
    plan.threads = 32 * warps_for(plan.stage_bytes);
    plan.slices = slices_for(rows, tile, plan.threads / 32);
    plan.shared_bytes = plan.stages * plan.stage_bytes + overhead_bytes(plan, rows);
    return plan.shared_bytes <= limits.shared_per_block;
  };
  if (int64_t(rows) * dim * element_bytes <= limits.shared_per_block && lay(dim, 2)) return plan;
  int64_t chunk = kChunkBytes / element_bytes / rows / kLeastChunk * kLeastChunk;
  if (chunk < kLeastChunk) chunk = kLeastChunk;
  for (;; chunk = chunk / 2 / kLeastChunk * kLeastChunk) {
    if (chunk < kLeastChunk) break;
    if (lay(chunk, 3) || lay(chunk, 2)) return plan;
  }
  return Plan();
}

}  // namespace cuda
}  // namespace logo
