#include "cuda/copy.cuh"

#include "cuda/launch.cuh"
#include "cuda/shared.cuh"
#include "planted.h"

using namespace logo::cuda;

namespace planted {
namespace {

constexpr int kThreads = 64, kTile = 4 * kThreads, kStages = 2;
constexpr uint32_t kTileBytes = kTile * sizeof(float);

// What a thread takes from a tile: the numbers that a thread of the other warp copied.
__device__ void take(const float* tile, float* out) {
  const int other = 4 * (kThreads - 1 - int(threadIdx.x));
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = tile[other + i];
}

// Tiles of 4 numbers per thread through two stages.
__global__ void groups_kernel(const float* x, float* out, int tiles, Mistake mistake) {
  auto* stages = reinterpret_cast<float*>(dynamic_shared());
  const int own = 4 * int(threadIdx.x) + (mistake == Mistake::misaligned);
  const auto fetch = [&](int tile) {
    if (tile < tiles) copy_async_16(stages + tile % kStages * kTile + own, x + tile * kTile + own);
    if (mistake != Mistake::no_commit) copy_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    fetch(tile + kStages - 1);
    if (mistake != Mistake::no_wait) copy_wait(kStages - 1);
    if (mistake != Mistake::no_barrier) __syncthreads();
    take(stages + tile % kStages * kTile, out + tile * kTile);
    if (mistake != Mistake::filled_while_in_use) __syncthreads();
  }
}

__global__ void bulk_kernel(const float* x, float* out, int tiles, Mistake mistake) {
  auto* stages = reinterpret_cast<float*>(dynamic_shared());
  auto* arrivals = reinterpret_cast<Arrivals*>(dynamic_shared() + kStages * kTileBytes);
  if (threadIdx.x == 0 && mistake != Mistake::no_init) {
    for (int i = 0; i < kStages; ++i) arrivals_init(&arrivals[i], 1);
    if (mistake != Mistake::no_fence) arrivals_fence_init();
  }
  __syncthreads();
  const auto fetch = [&](int tile) {
    if (threadIdx.x != 0 || tile >= tiles) return;
    const int stage = tile % kStages, off = mistake == Mistake::misaligned;
    arrivals_expect(&arrivals[stage], kTileBytes + (mistake == Mistake::too_many_bytes ? 16 : 0) -
                                          (mistake == Mistake::too_few_bytes ? 16 : 0));
    copy_bulk(stages + stage * kTile, x + tile * kTile + off, kTileBytes, &arrivals[stage]);
  };
  for (int tile = 0; tile < kStages; ++tile) fetch(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    const uint32_t parity = uint32_t(tile / kStages & 1) ^ (mistake == Mistake::wrong_parity);
    if (mistake == Mistake::no_wait) {
      __syncthreads();  // thread 0 has asked for the copy, and no more than that
    } else {
      arrivals_wait(&arrivals[tile % kStages], parity);
    }
    take(stages + tile % kStages * kTile, out + tile * kTile);
    if (mistake != Mistake::filled_while_in_use) __syncthreads();
    fetch(tile + kStages);
  }
}

}  // namespace

cudaError_t copy_groups(const float* x, float* out, int tiles, Mistake mistake) {
  const Grid grid{1, kThreads, kStages * kTileBytes, nullptr};
  return launch(groups_kernel, grid, x, out, tiles, mistake);
}

cudaError_t copy_in_bulk(const float* x, float* out, int tiles, Mistake mistake) {
  const Grid grid{1, kThreads, kStages * (kTileBytes + sizeof(Arrivals)), nullptr};
  return launch(bulk_kernel, grid, x, out, tiles, mistake);
}

}  // namespace planted
