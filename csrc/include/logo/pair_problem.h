// What the launchers of the learned affinity's pair stage are given; backends/pairs.py says what
// they compute.
//
// All arrays are dense. Those named T are of `dtype`; the others are fp32, fp64 where T is fp64.
#pragma once

#include <cstdint>

#include "logo/macros.h"
#include "logo/problem.h"

namespace logo {

// The numbers are those of LINKS in logo_kernels/backends/pairs.py.
enum class Link : int32_t { identity = 0, softplus = 1, softplus_negated = 2 };

// Batch norm of one half of the stage. Launchers of moments make norm of it if `weight` is given.
struct BatchNorm {
  const void* weight = nullptr;  // [H]
  const void* bias = nullptr;    // [H]
  bool batch = true;             // by the statistics of the batch, else by the running ones
  void* mean = nullptr;          // [H] the running statistics, null where none are kept
  void* var = nullptr;           // [H]
  int64_t* batches = nullptr;    // how many they are of
  double momentum = 0;           // the last batch's share of them; negative: that of every batch
  double eps = 0;
};

// Pairs of crops before the second product: h_p = a[b, i] + c[(b + roll) mod B, j],
// p = (b L + i)(L − 1) + j − (j > i). Each launcher names what it reads and writes.
struct PairHiddenProblem {
  int64_t images = 0;  // B ≥ 1
  int64_t crops = 0;   // L ≥ 2
  int64_t width = 0;   // H ≥ 1
  int64_t roll = 0;    // 0 ≤ roll < B
  DType dtype = DType::f32;
  const void* a = nullptr;           // [B, L, H] T
  const void* c = nullptr;           // [B, L, H] T
  void* norm = nullptr;              // [4, H] mean, scale, bias, 1/√(var + ε); its last is optional
  const void* grad_x = nullptr;      // [P, H] T
  const void* correction = nullptr;  // [2, H]
  void* moments = nullptr;           // [2, H]
  void* x = nullptr;                 // [P, H] T
  void* to_a = nullptr;              // [B, L, H]: written by the sums, read by the backward
  void* to_c = nullptr;              // [B, L, H]
  void* sums = nullptr;              // [2, H]
  void* grad_a = nullptr;            // [B, L, H] T
  void* grad_c = nullptr;            // [B, L, H] T
  // What the sums become if it is given: see backends/pairs.py.
  void* facts = nullptr;  // [5, H]
  int64_t values = 0;     // that the statistics are of; 0: they are constants
  BatchNorm batch_norm;
  int threads = 1;  // of the CPU

  LOGO_METHOD int64_t pairs() const { return images * crops * (crops - 1); }
};

// Pairs after the second product: f_p = w₃ · relu(n(y_p)) + b₃.
struct PairOutputProblem {
  int64_t images = 0;  // B ≥ 1
  int64_t pairs = 0;   // of one image, L (L − 1)
  int64_t width = 0;   // H' ≥ 1
  Link link = Link::identity;
  DType dtype = DType::f32;
  const void* y = nullptr;       // [P, H'] T
  void* norm = nullptr;          // [4, H']
  const void* weight = nullptr;  // [H']
  const void* bias = nullptr;    // [1]
  const void* grad = nullptr;    // [B]
  int64_t grad_stride = 1;
  const void* correction = nullptr;  // [2, H']
  void* moments = nullptr;           // [2, H']
  void* value = nullptr;             // [B]
  void* slope = nullptr;             // [P]: written by the output, read by the sums and backward
  void* sums = nullptr;              // [2, H']
  void* grad_y = nullptr;            // [P, H'] T
  void* facts = nullptr;             // [6, H']
  int64_t values = 0;
  BatchNorm batch_norm;
  int threads = 1;  // of the CPU
};

// Rows as unit vectors z/‖z‖, or their gradient; backends/pairs.py says what `factors` are.
struct UnitProblem {
  int64_t images = 0;       // B
  int64_t dim = 0;          // D
  Rows crops;               // [B, L, D]: z, or in backward its gradient, which is written
  Rows units;               // [B, L, D], dense
  Rows grad;                // [B, L, D], dense: backward's upstream gradient
  void* factors = nullptr;  // [B·L, 2] fp32, fp64 for fp64 crops or units
  bool wide = false;        // whether they are fp64
  int threads = 1;          // of the CPU
};

}  // namespace logo
