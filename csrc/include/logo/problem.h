// What a launcher is given: sizes, strides and addresses. Python validates and allocates.
//
// B images, D numbers per crop; strides are in elements, of either sign, zero for expanded tensors.
#pragma once

#include <cstdint>

#include "logo/macros.h"

namespace logo {

// The numbers are those of logo_kernels/backends/arguments.py.
enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
// Over images; pairs: of InfoNCE alone, each pair for itself.
enum class Reduction : int32_t { mean = 0, sum = 1, none = 2, pairs = 3 };

enum class Status : int32_t { ok = 0, out_of_memory = 1, launch_failed = 2 };

// [B, count, D], or absent (count = 0).
struct Rows {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t count = 0;
  int64_t image_stride = 0;
  int64_t crop_stride = 0;
  int64_t element_stride = 0;

  LOGO_METHOD bool present() const { return count > 0; }
};

// Cosine LoGo loss and gradient (DESIGN, eqs 2-5, 9).
struct CosineProblem {
  int64_t images = 0;
  int64_t dim = 0;
  Rows global;    // [B, G, D] x, online
  Rows local;     // [B, L, D] y, online; may be absent
  Rows targets;   // [B, G, D] t; absent: global
  Rows features;  // [B, L, D] r; absent: local
  // Weight of one pair in an image's total: ordered gg pairs, lg pairs, unordered ll pairs.
  double gg_weight = 0, lg_weight = 0, ll_weight = 0;
  bool repulsion = false;
  Reduction reduction = Reduction::mean;
  bool fp64 = false;  // dtype of total and terms: fp64, else fp32
  Rows grad_global;   // absent: not wanted; unit stride over D, like the other gradients
  Rows grad_local;
  Rows grad_features;
  float* row_scale = nullptr;  // [B, G + L + L'], null unless a gradient is fp16
  void* total = nullptr;       // [] or [B]
  void* terms = nullptr;       // [3] or [3, B]
  int threads = 1;             // of the CPU
};

// Cosines between all pairs of rows of one image, and their gradients.
struct SimilarityProblem {
  int64_t images = 0;
  int64_t dim = 0;
  Rows a;        // [B, V, D]
  Rows b;        // [B, W, D]; absent: a
  Rows cosines;  // [B, V, W] with D standing for W: forward's output, backward's upstream gradient
  Rows grad_a;   // backward only; absent: not wanted
  Rows grad_b;
  int threads = 1;  // of the CPU
};

constexpr int kMaxGradients = 3;

// Gradients times the upstream gradient, and times the scales of their rows, in place.
struct ScaleProblem {
  int64_t images = 0;
  int64_t dim = 0;
  Rows gradients[kMaxGradients];  // [B, V_i, D] of any dtypes, unit stride over D; some present
  Rows upstream;  // [B] as B images of one row and D = 1, or one number: image_stride 0
  Rows row_scales[kMaxGradients];  // [B, V_i] fp32 as rows of D = 1; absent: one
};

}  // namespace logo
