// Kernels with one mistake each, chosen at the launch, to show that the emulator catches it. All
// take mistake::none as well.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace planted {

enum class Mistake : int {
  none = 0,
  no_barrier,
  no_warp_barrier,
  part_of_block,
  early_exit,
  wrong_kind,
  part_of_warp,
  not_in_mask,
  wrong_count,
  part_of_warps,
  no_wait,
  no_commit,
  no_fence,
  no_init,
  too_many_bytes,
  too_few_bytes,
  wrong_parity,
  misaligned,
  filled_while_in_use,
  wrong_fragment,
};

// barriers.cu
cudaError_t block_sum(const float* x, float* sums, int blocks, int threads, Mistake mistake);
cudaError_t uniform_barrier(int* out, int threads, Mistake mistake);
cudaError_t producers(const float* x, float* out, int rounds, Mistake mistake);

// warps.cu
cudaError_t neighbours(const float* x, float* out, int step, Mistake mistake);
cudaError_t shuffles(const int* x, int* out);  // [11, 64]
cudaError_t divided_warp(const int* x, int* out, Mistake mistake);

// atomics.cu
cudaError_t histogram(const int* x, int n, unsigned* counts, float* total, unsigned* tickets,
                      unsigned* last_block_saw, int blocks);

// memory.cu
cudaError_t unwritten(float* as_float, uint32_t* bits, bool dynamic);
cudaError_t write_at(int offset, int shared_bytes);
cudaError_t empty(unsigned blocks, unsigned threads, size_t shared_bytes, size_t allowed);

// copies.cu
cudaError_t copy_groups(const float* x, float* out, int tiles, Mistake mistake);
cudaError_t copy_in_bulk(const float* x, float* out, int tiles, Mistake mistake);

// products.cu
cudaError_t fragments_product(const uint32_t* a, const uint32_t* b, float* d, bool bf16);
cudaError_t matrix_product(const uint16_t* a, const uint16_t* b, float* d, Mistake mistake);

// conversions.cu
cudaError_t unpack_pairs(const uint32_t* pairs, float* values, int n, bool bf16);
cudaError_t pack_pairs(const float* values, uint32_t* pairs, int n, bool bf16);
cudaError_t clamp(const float* x, float* clamped, int n, float limit);

// busy.cu
cudaError_t busy(const float* x, float* out, int blocks, int barriers, int shuffles);

}  // namespace planted
