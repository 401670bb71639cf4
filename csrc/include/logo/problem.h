// The problems of launchers: sizes, strides and addresses. Python validates and allocates.
//
// B images, D numbers per crop; strides are in elements, of either sign, zero for expanded tensors.
//
// A problem is one list of fields. The list makes the struct's members, and the bindings turn
// Python's arguments into them, in its order. Names are those of the package's records. A launcher
// reads only the fields that concern it; a field that is not given is absent, zero or null.
#pragma once

#include <cstdint>

#include "logo/macros.h"

namespace logo {

// The numbers are those of logo_kernels/backends/compiled.py.
enum class DType : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
// Over images; pairs: of InfoNCE alone, each pair for itself.
enum class Reduction : int32_t { mean = 0, sum = 1, none = 2, pairs = 3 };
// Over pairs: eqs. 3-5 add them up, the authors' code takes one average over all attraction pairs.
enum class PairReduction : int32_t { sum = 0, mean = 1 };
// Links of the learned affinity f: f itself, softplus(f), softplus(−f).
enum class Link : int32_t { identity = 0, softplus = 1, softplus_negated = 2 };

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
  LOGO_METHOD bool is_fp64() const { return present() && dtype == DType::f64; }
};
// A matrix [count, D] as rows of one image.
struct MatrixRows : Rows {};
// A number for each pair, [B, V, P] with P in the place of D. A sum over pairs, [B] or [], has
// strides of zero along the dimensions that have been summed.
struct PairRows : Rows {};

// The weight of a pair of a local and a global crop in its image's total; in a mean, of two global
// crops too.
LOGO_FUNCTION double attraction_weight(PairReduction reduction, int64_t globals, int64_t locals) {
  const int64_t pairs = globals * (globals - 1) + locals * globals;
  return reduction == PairReduction::mean && pairs > 0 ? 1.0 / double(pairs) : 1.0;
}

#define LOGO_MEMBER(Type, name) Type name{};
#define LOGO_VISIT(Type, name) visit(#name, name);
#define LOGO_COUNT(Type, name) +1

// A struct's members from its list: the fields, visit(name, field) for each, and their number.
#define LOGO_MEMBERS(FIELDS)            \
  FIELDS(LOGO_MEMBER)                   \
  template <class Visit>                \
  void each_field(const Visit& visit) { \
    FIELDS(LOGO_VISIT)                  \
  }                                     \
  static constexpr int kFields = FIELDS(LOGO_COUNT)

// Cosine LoGo loss and gradient (docs/design.md, eqs 2-5, 9).
#define LOGO_COSINE_FIELDS(FIELD)                                                                 \
  FIELD(int64_t, images)                      /* B */                                             \
  FIELD(int64_t, dim)                         /* D */                                             \
  FIELD(Rows, global_crops)                   /* [B, G, D] x, online; absent: nothing attracts */ \
  FIELD(Rows, local_crops)                    /* [B, L, D] y, online; may be absent */            \
  FIELD(Rows, targets)                        /* [B, G, D] t; absent: global_crops */             \
  FIELD(Rows, features)                       /* [B, L, D] r; absent: local_crops */              \
  FIELD(double, repulsion_weight)             /* λ */                                             \
  FIELD(const void*, repulsion_weight_tensor) /* times this number in memory, if given */         \
  FIELD(bool, repulsion)                      /* whether local crops repel one another */         \
  FIELD(PairReduction, pair_reduction)        /* of an image's pairs */                           \
  FIELD(Reduction, reduction)                 /* over images */                                   \
  FIELD(void*, total)                         /* [] or [B] */                                     \
  FIELD(void*, terms)                         /* [3] or [3, B]; null: not wanted */               \
  FIELD(Rows, grad_global)   /* absent: not wanted; unit stride over D, like the others */        \
  FIELD(Rows, grad_local)    /* likewise */                                                       \
  FIELD(Rows, grad_features) /* likewise */                                                       \
  FIELD(float*, row_scale)   /* [B, G + L + L'], null unless a gradient is fp16 */

struct CosineProblem {
  LOGO_MEMBERS(LOGO_COSINE_FIELDS);
  int threads = 1;  // of the CPU

  // The dtype of total, terms and the number in memory: fp64, else fp32.
  LOGO_METHOD bool fp64() const {
    return global_crops.is_fp64() || local_crops.is_fp64() || targets.is_fp64() ||
           features.is_fp64();
  }
  // Weights of one pair in its image's total: ordered gg pairs, lg pairs, unordered ll pairs.
  LOGO_METHOD double gg_weight() const {
    return pair_reduction == PairReduction::sum ? 0.5 : lg_weight();
  }
  LOGO_METHOD double lg_weight() const {
    return attraction_weight(pair_reduction, global_crops.count, local_crops.count);
  }
  LOGO_METHOD double ll_weight() const {
    const int64_t pairs = local_crops.count * (local_crops.count - 1) / 2;
    const bool mean = pair_reduction == PairReduction::mean && pairs > 0;
    return repulsion_weight / (mean ? double(pairs) : 1.0);
  }
};

// Cosines between all pairs of rows of one image, and their gradients.
#define LOGO_SIMILARITY_FIELDS(FIELD)                                               \
  FIELD(int64_t, images) /* B */                                                    \
  FIELD(int64_t, dim)    /* D */                                                    \
  FIELD(Rows, a)         /* [B, V, D] */                                            \
  FIELD(Rows, b)         /* [B, W, D]; absent: a */                                 \
  FIELD(Rows, cosines)   /* [B, V, W] with W in the place of D: forward's result */ \
  FIELD(Rows, grad)      /* [B, V, W] likewise: backward's upstream gradient */     \
  FIELD(Rows, grad_a)    /* backward's result; absent: not wanted */                \
  FIELD(Rows, grad_b)    /* likewise */

struct SimilarityProblem {
  LOGO_MEMBERS(LOGO_SIMILARITY_FIELDS);
  int threads = 1;  // of the CPU
};

// InfoNCE of an image's V queries: its G global crops, then its L local ones. Each has the P
// positives of its image, but global crop i not positive i.
#define LOGO_INFO_NCE_FIELDS(FIELD)                                                                \
  FIELD(int64_t, images)                 /* B */                                                   \
  FIELD(int64_t, dim)                    /* D */                                                   \
  FIELD(Rows, global_crops)              /* [B, G, D]; absent: they are no queries */              \
  FIELD(Rows, local_crops)               /* [B, L, D] of the global ones' dtype; absent too */     \
  FIELD(Rows, positives)                 /* [B, P, D] */                                           \
  FIELD(MatrixRows, negatives)           /* [K, D]; absent: the other images' positives */         \
  FIELD(bool, own_first)                 /* image b does not see negatives b·P, .. b·P + P − 1 */  \
  FIELD(double, temperature)             /* τ */                                                   \
  FIELD(const void*, temperature_tensor) /* τ in memory, in its place; null: none */               \
  FIELD(PairReduction, pair_reduction)   /* of an image's pairs */                                 \
  FIELD(Reduction, reduction)            /* over images, and over pairs unless `pairs` */          \
  FIELD(void*, total)                    /* [], [B] or, of pairs, [B, V, P] */                     \
  FIELD(void*, terms)                    /* [2] or [2, B]; null: not wanted, as of pairs */        \
  FIELD(void*, lse)                      /* [B, V] */                                              \
  FIELD(Rows, pull)                      /* [B, V, P], dense; backward reads what forward wrote */ \
  FIELD(Rows, mean)                      /* [B, V, D], dense; likewise */                          \
  FIELD(PairRows, upstream)              /* backward's gradient to the total */                    \
  FIELD(Rows, grad_global)               /* absent: not wanted; unit stride over D */              \
  FIELD(Rows, grad_local)                /* likewise */                                            \
  FIELD(void*, grad_temperature)         /* []; null: not wanted */

struct InfoNCEProblem {
  LOGO_MEMBERS(LOGO_INFO_NCE_FIELDS);
  int threads = 1;  // of the CPU

  LOGO_METHOD int64_t crops() const { return global_crops.count + local_crops.count; }  // V
  LOGO_METHOD int64_t queries() const { return images * crops(); }                      // N
  // The dtype of τ in memory and of all results but the crops' gradients: fp64, else fp32.
  LOGO_METHOD bool fp64() const { return mean.dtype == DType::f64; }
  // Weights of the loss of one pair in its image's total, of a global crop and of a local one.
  LOGO_METHOD double gg_weight() const {
    return pair_reduction == PairReduction::sum ? 0.5 : lg_weight();
  }
  LOGO_METHOD double lg_weight() const {
    return attraction_weight(pair_reduction, positives.count, local_crops.count);
  }
  LOGO_METHOD DType query_dtype() const {
    return global_crops.present() ? global_crops.dtype : local_crops.dtype;
  }
  LOGO_METHOD int64_t negative_count() const {
    return negatives.present() ? negatives.count : images * positives.count;
  }
  // How many negatives an image brings itself, which its queries do not see; 0: they see all.
  LOGO_METHOD int64_t own_negatives() const {
    return own_first || !negatives.present() ? positives.count : 0;
  }
  // A global crop is no positive of itself.
  LOGO_METHOD bool is_pair(int64_t crop, int64_t positive) const {
    return crop >= global_crops.count || crop != positive;
  }
};

// The learned affinity's MLP around its products; logo_kernels/affinity/pairs.py has the formulas
// of its launchers. All arrays are dense. Those marked T are of `dtype`, the others are fp32, fp64
// where T is fp64.

// Batch norm, of which launchers of moments make `norm` where norm_weight is given.
#define LOGO_BATCH_NORM_FIELDS(FIELD)                                                            \
  FIELD(const void*, norm_weight) /* [H] */                                                      \
  FIELD(const void*, norm_bias)   /* [H] */                                                      \
  FIELD(bool, batch)              /* by the statistics of the batch, else by the running ones */ \
  FIELD(void*, running_mean)      /* [H]; null where none are kept */                            \
  FIELD(void*, running_var)       /* [H] */                                                      \
  FIELD(int64_t*, batches)        /* [] how many batches they are of; null: not counted */       \
  FIELD(double, momentum)         /* the last batch's share; negative: that of every batch */    \
  FIELD(double, eps)              /* ε */

// Pairs of crops before the second product: h_p = a[b, i] + c[(b + roll) mod B, j],
// p = (b L + i)(L − 1) + j − (j > i).
#define LOGO_AFFINITY_HIDDEN_FIELDS(FIELD)                                                       \
  FIELD(int64_t, images)         /* B ≥ 1 */                                                     \
  FIELD(int64_t, crops)          /* L ≥ 2 */                                                     \
  FIELD(int64_t, width)          /* H ≥ 1 */                                                     \
  FIELD(int64_t, roll)           /* 0 ≤ roll < B */                                              \
  FIELD(DType, dtype)            /* T */                                                         \
  FIELD(const void*, a)          /* [B, L, H] T */                                               \
  FIELD(const void*, c)          /* [B, L, H] T */                                               \
  FIELD(void*, norm)             /* [4, H] mean, scale, bias, 1/√(var + ε); the last optional */ \
  FIELD(const void*, grad_x)     /* [P, H] T */                                                  \
  FIELD(const void*, correction) /* [2, H] */                                                    \
  FIELD(void*, moments)          /* [2, H] */                                                    \
  FIELD(void*, x)                /* [P, H] T */                                                  \
  FIELD(void*, to_a)             /* [B, L, H]: written by the sums, read by the backward; of */  \
                                 /* both in turn null where T is their dtype: then grad_a */     \
  FIELD(void*, to_c)             /* [B, L, H] likewise */                                        \
  FIELD(void*, sums)             /* [2, H] */                                                    \
  FIELD(void*, grad_a)           /* [B, L, H] T */                                               \
  FIELD(void*, grad_c)           /* [B, L, H] T */                                               \
  FIELD(void*, facts)            /* [5, H] in the place of the sums, if given (batch_norm.h) */  \
  LOGO_BATCH_NORM_FIELDS(FIELD)

struct AffinityHiddenProblem {
  LOGO_MEMBERS(LOGO_AFFINITY_HIDDEN_FIELDS);
  int threads = 1;  // of the CPU

  LOGO_METHOD int64_t all_pairs() const { return images * crops * (crops - 1); }  // P
};

// Pairs after the second product: f_p = w₃ · relu(n(y_p)) + b₃.
#define LOGO_AFFINITY_OUTPUT_FIELDS(FIELD)                                                        \
  FIELD(int64_t, images)         /* B ≥ 1 */                                                      \
  FIELD(int64_t, pairs)          /* of one image, L (L − 1) */                                    \
  FIELD(int64_t, width)          /* H' ≥ 1 */                                                     \
  FIELD(Link, link)              /* of f, whose mean over an image's pairs is its value */        \
  FIELD(DType, dtype)            /* T */                                                          \
  FIELD(const void*, y)          /* [P, H'] T */                                                  \
  FIELD(void*, norm)             /* [4, H'] mean, scale, bias, 1/√(var + ε); the last optional */ \
  FIELD(const void*, last)       /* [H'] w₃ */                                                    \
  FIELD(const void*, last_bias)  /* [1] b₃ */                                                     \
  FIELD(const void*, grad)       /* [B] upstream gradient, in steps of grad_stride */             \
  FIELD(int64_t, grad_stride)    /* 0 where it is expanded */                                     \
  FIELD(const void*, correction) /* [2, H'] */                                                    \
  FIELD(void*, moments)          /* [2, H'] */                                                    \
  FIELD(void*, value)            /* [B] */                                                        \
  FIELD(void*, slope)            /* [P]: written by the output, read by the sums and backward */  \
  FIELD(void*, sums)             /* [2, H'] */                                                    \
  FIELD(void*, grad_y)           /* [P, H'] T */                                                  \
  FIELD(void*, facts)            /* [6, H'] in the place of the sums, if given (batch_norm.h) */  \
  FIELD(bool, summed)            /* of the gradient: whether the facts are summed at all; else */ \
                                 /* they are zeros already */                                     \
  LOGO_BATCH_NORM_FIELDS(FIELD)

struct AffinityOutputProblem {
  LOGO_MEMBERS(LOGO_AFFINITY_OUTPUT_FIELDS);
  int threads = 1;  // of the CPU

  LOGO_METHOD int64_t all_pairs() const { return images * pairs; }  // P
};

// Rows as unit vectors z/‖z‖, or their gradient; unit.h has the factors.
#define LOGO_UNIT_FIELDS(FIELD)                                                  \
  FIELD(int64_t, images) /* B */                                                 \
  FIELD(int64_t, dim)    /* D */                                                 \
  FIELD(Rows, z)         /* [B, L, D] */                                         \
  FIELD(Rows, unit)      /* [B, L, D], dense */                                  \
  FIELD(Rows, grad)      /* [B, L, D], dense: backward's upstream gradient */    \
  FIELD(Rows, grad_z)    /* [B, L, D]: backward's result */                      \
  FIELD(void*, factors)  /* [B·L, 2] fp32, fp64 where z or the units are fp64 */ \
  FIELD(bool, wide)      /* whether they are fp64 */

struct UnitProblem {
  LOGO_MEMBERS(LOGO_UNIT_FIELDS);
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
