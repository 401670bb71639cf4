// How images are laid over a GPU: a pure function of their sizes and of the device's limits.
//
// The trade-offs behind the numbers, on an H100 or H200 (132 multiprocessors, 228 KiB of shared
// memory each, about 25 KiB of reads in flight on each to keep DRAM busy):
//
// - Blocks that share a multiprocessor work while others wait for memory or at a barrier. Four are
//   better than two that have a second stage each, and two better than one that has; beyond that, a
//   second stage, in which the next image arrives, is better than more blocks. µs on an H200:
//
//                                                    blocks × stages   others
//       cosine   12 rows of 2048, 8192 images, bf16     4 × 1: 230     2 × 2: 242
//                                     1024 images             48              46
//                                     8192 images, fp16      232             265
//                20 rows of 2048, 4096 images, bf16     2 × 1: 231     1 × 2: 267
//                12 rows of 2048, 8192 images, fp32     2 × 1: 427     1 × 2: 450
//                                     1024 images             78              74
//                12 rows of 1024, 8192 images, bf16     4 × 2: 127     5 × 1: 131
//       similarity, backward
//                10 rows of 2048, 8192 images, bf16     4 × 1: 241     2 × 2: 323
//
//   Stages of half an image, freed one by one while the gradient is written, took 233 for 230.
// - A warp for 6 KiB of an image, for 12 where there is one stage: a small image gets one warp, and
//   none waits for another's.
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

inline int warps_for(int64_t bytes, int stages) {
  const int64_t share = stages == 1 ? 2 * kBytesPerWarp : kBytesPerWarp;
  int warps = 1;
  while (warps < kMaxThreads / 32 && warps * share < bytes) warps *= 2;
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
    plan.threads = 32 * warps_for(int64_t(rows) * chunk * element_bytes, stages);
    plan.slices = slices_for(rows, tile, plan.threads / 32);
    plan.shared_bytes = plan.stages * plan.stage_bytes + overhead_bytes(plan, rows);
    plan.blocks =
        int((limits.shared_per_block + kReservedBytes) / (plan.shared_bytes + kReservedBytes));
    return plan.blocks >= blocks;
  };
  const bool whole = int64_t(rows) * dim * element_bytes <= limits.shared_per_block;
  if (whole && (lay(dim, 2, 4) || lay(dim, 1, 2) || lay(dim, 3) || lay(dim, 2))) return plan;
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
