#include "mma.h"

#include <cstring>
#include <string>

#include "logo/dtypes.h"
#include "shared.h"

namespace emulation {
namespace {

struct Operands {
  float* d;
  const uint32_t *a, *b;
  bool bf16;
};

struct Matrices {
  uint32_t* r;
  const unsigned char* row;
  bool transposed;
};

float half_of(uint32_t pair, int upper, bool bf16) {
  const auto bits = uint16_t(upper ? pair >> 16 : pair);
  return bf16 ? logo::to_float(logo::bf16{bits}) : logo::to_float(logo::f16{bits});
}

}  // namespace

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bool bf16) {
  const Operands operands{d, a, b, bf16};
  warp_collective(Collective::mma, 0xffffffff, reinterpret_cast<uint64_t>(&operands));
}

void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  std::string why;
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail("ldmatrix: a row is not aligned to 16 bytes");
  if (!within_shared(row, 16, &why)) fail("ldmatrix out of bounds of shared memory: " + why);
  const Matrices matrices{r, static_cast<const unsigned char*>(row), transposed};
  warp_collective(Collective::matrices, 0xffffffff, reinterpret_cast<uint64_t>(&matrices));
}

// PTX ISA, "Warp-level matrix load instruction: ldmatrix": 8 × 8 elements of 16 bits each.
void load(Thread* lanes) {
  const auto of = [&](int lane) -> const Matrices& {
    return *reinterpret_cast<const Matrices*>(lanes[lane].value);
  };
  uint16_t elements[4][8][8];
  for (int lane = 0; lane < 32; ++lane) {
    std::memcpy(elements[lane / 8][lane % 8], of(lane).row, 16);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int group = lane / 4, pair = lane % 4 * 2;
      const bool transposed = of(lane).transposed;
      const uint32_t low = transposed ? elements[i][pair][group] : elements[i][group][pair];
      const uint32_t high =
          transposed ? elements[i][pair + 1][group] : elements[i][group][pair + 1];
      of(lane).r[i] = high << 16 | low;
    }
  }
}

// Fragments as PTX ISA lays them out ("Matrix Fragments for mma.m16n8k16 with floating point
// type"), by the index of an element within the fragment.
void multiply(Thread* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = *reinterpret_cast<const Operands*>(lanes[lane].value);
    const int group = lane >> 2, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      a[row][column] = half_of(o.a[i / 2], i & 1, o.bf16);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
      b[row][group] = half_of(o.b[i / 2], i & 1, o.bf16);
    }
  }
  float d[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {  // products of 16-bit floats are exact in fp32
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& o = *reinterpret_cast<const Operands*>(lanes[lane].value);
    for (int i = 0; i < 4; ++i) {
      o.d[i] += d[(lane >> 2) + (i < 2 ? 0 : 8)][lane % 4 * 2 + (i & 1)];
    }
  }
  ++statistics.mma;
}

}  // namespace emulation
