// Gradients of bf16 rows as one product W·X on the tensor cores.
//
// Row i of W weighs all rows of the image in the gradient of row i. It takes the place of row i of
// the Gram matrix, so that a kernel's algebra reads the one and writes the other. A weight is the
// sum of three bf16 numbers, 24 bits, and is thus as exact as in fp32.
//
// Counted in the code for sm_90, not timed: a panel of 16 rows and 64 columns takes a warp 111
// instructions; of the cosine's 12 rows, sums by fused multiply-adds took some 190.
#pragma once

#include <cuda_runtime.h>

#include "cuda/facts.cuh"
#include "cuda/gram.cuh"
#include "cuda/mma.cuh"
#include "cuda/output.cuh"
#include "cuda/stage.cuh"

namespace logo {
namespace cuda {

constexpr int kWeightParts = 3;
constexpr int kPanelVectors = 8;  // of 16 bytes: the columns that a warp takes at a time

// 16 × 16 weights as the first operand of a product. Weight (i, k) of the tile stands where the
// instruction has row i and another column: a lane's four columns are rows member, member + 4,
// member + 8 and member + 12 of X, which it loads whole.
struct WeightTile {
  uint32_t parts[kWeightParts][4];

  // row: the first weight of this lane's row `group` of the tile; rows are `pitch` floats apart.
  __device__ __forceinline__ void load(const float* row, int pitch, int member) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float* const at = row + k % 2 * 8 * pitch + k / 2 * 8 + member;
      float low = at[0], high = at[4];
#pragma unroll
      for (int part = 0; part < kWeightParts; ++part) {
        const uint32_t pair = pack<bf16>(low, high);
        const float2 taken = unpack<bf16>(pair);
        parts[part][k] = pair;
        low -= taken.x;
        high -= taken.y;
      }
    }
  }
};

// The order in which lanes take vectors 0 .. 7 of a panel: two that are four apart, so that beside
// four neighbouring rows they lie on different banks (image_plan.h, pitch_for), and so that four
// lanes write four vectors side by side.
__device__ __forceinline__ int four_apart(int group) { return group / 2 + group % 2 * 4; }

// Eight columns of four rows, from the layout of memory to that of the second operand: pairs of two
// rows in one column.
struct PartnerTile {
  uint32_t pairs[8][2];  // [column][rows member and member + 4, member + 8 and member + 12]

  // at: the lane's vector; rows: where the lane's four begin.
  __device__ __forceinline__ void load(const unsigned char* at, const int (&rows)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 first = *reinterpret_cast<const uint4*>(at + rows[2 * half]);
      const uint4 second = *reinterpret_cast<const uint4*>(at + rows[2 * half + 1]);
      const uint32_t a[4] = {first.x, first.y, first.z, first.w};
      const uint32_t b[4] = {second.x, second.y, second.z, second.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        pairs[2 * k][half] = __byte_perm(a[k], b[k], 0x5410);
        pairs[2 * k + 1][half] = __byte_perm(a[k], b[k], 0x7632);
      }
    }
  }
};

// Rows of W·X, for columns first .. of the image, to where facts.gradient has them go.
//
// ALONE: all rows are one tile, whose weights stay in registers.
template <bool ALONE>
__device__ void multiply_weights(const Stage<bf16>& stage, const Gram& weights, const Facts& facts,
                                 int64_t first) {
  const int lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int vectors = stage.vectors(), panels = (vectors + kPanelVectors - 1) / kPanelVectors;
  const int tiles = ALONE ? 1 : weights.padded / 16;
  // Where panels are few, groups of warps share them and deal tiles of rows among themselves.
  const int groups = max(1, warps / panels), of = groups == 1 ? 0 : warp / panels;
  const int step = groups == 1 ? warps : panels;
  if (of >= groups) return;  // a warp beyond the last whole group
#pragma unroll 1
  for (int tile = of; tile < tiles; tile += groups) {
    const int top = 16 * tile + group;
    const float* const row = weights.row(top);
    WeightTile weight;
    int rows[4];
    // Beyond the last row: that row again, whose weights are zero.
    const auto find_rows = [&](int k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        rows[j] = min(16 * k + 4 * j + member, weights.rows - 1) * stage.pitch;
      }
    };
    if (ALONE) {
      weight.load(row, weights.pitch, member);
      find_rows(0);
    }
    int panel = warp - of * panels;
#pragma unroll 1
    for (; panel < panels; panel += step) {
      // Beyond the last vector: that vector again, not stored.
      const int vector = min(panel * kPanelVectors + four_apart(group), vectors - 1);
      float sums[8][4] = {};  // [column of a vector][as the instruction has it]
#pragma unroll 1
      for (int k = 0; k < tiles; ++k) {
        if (!ALONE) find_rows(k);
        PartnerTile partners;
        partners.load(stage.data + vector * 16, rows);
        if (!ALONE) weight.load(row + 16 * k, weights.pitch, member);
#pragma unroll
        for (int part = kWeightParts - 1; part >= 0; --part) {  // the smallest first
#pragma unroll
          for (int column = 0; column < 8; ++column) {
            mma_m16n8k16<bf16>(sums[column], weight.parts[part], partners.pairs[column]);
          }
        }
      }
      uint4 packed[4];  // vectors `member`, `member` + 4 of the row at the top, and of the other
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        float values[8];
#pragma unroll
        for (int column = 0; column < 8; ++column) values[column] = sums[column][k];
        packed[k] = narrow(values, bf16());
      }
      // Nothing reads the gradient before the next kernel: it should not push crops out of L2.
      // Vectors `member` and `member` + 4 of both rows; addresses are read anew to save registers.
      const int at = panel * kPanelVectors + member;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int to_row = top + 8 * half;
        char* const begin = to_row < weights.rows ? facts.gradient[to_row] : nullptr;
        uint4* const to = reinterpret_cast<uint4*>(begin + first * int64_t(sizeof(bf16))) + at;
        if (begin != nullptr && at < vectors) __stcs(to, packed[2 * half]);
        if (begin != nullptr && at + 4 < vectors) __stcs(to + 4, packed[2 * half + 1]);
      }
    }
  }
}

}  // namespace cuda
}  // namespace logo
