// Cosine LoGo loss and gradient: one launch, each crop read from DRAM once.
//
// Products of all rows with all rows (gram.cuh) give the cosines. The pairs of one kind have one
// weight, so the gradient needs only the sums T and R of the partners' unit vectors (math.h,
// cosine_with_sum): O(crops · D) work on rows that are in shared memory already. For few rows in
// bf16, the tensor cores take the gradient as well, as a product with all rows (weights.cuh).
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/output.cuh"
#include "cuda/ticket.cuh"
#include "cuda/vectors.cuh"
#include "cuda/walk.cuh"
#include "cuda/weights.cuh"
#include "logo/layout.h"
#include "logo/math.h"

namespace logo {
namespace cuda {
namespace {

// Weights of pairs up to here keep a gradient inside fp32 and bf16 for every norm that is not
// scaled (2^−40 and more, math.h); those of fp16 and of larger weights saturate.
constexpr double kOrdinaryWeight = 0x1p40;

struct CosineArguments {
  CosineProblem p;
  CosineLayout at;
  Input input;
  ImagePlan plan;
  Output grad_global, grad_local, grad_features;
  BlockSums sums;  // over images, of the cosines of each kind
  bool gradients;
  bool plain;    // they are written in whole vectors, and stay in range or are fp16
  bool careful;  // they may leave the range of their dtype
};

// Coefficients of a row's gradient: targets · T + features · R + own · row, and `other` times the
// target that is no partner.
struct Coefficients {
  float targets, features, own, other;
};

template <class T>
class CosineKernel {
 public:
  __device__ CosineKernel(const CosineArguments& arguments)
      : a_(arguments), at_(arguments.at), repulsion_(repulsion_of(arguments.p)) {
    const bool heavy = fabsf(float(at_.ll_weight) * repulsion_) > float(kOrdinaryWeight);
    plain_ = a_.plain && (kClamped || !heavy);
    careful_ = a_.careful || heavy;
  }

  __device__ bool gradients() const { return a_.gradients; }

  // The first warp works: a lane for each row that has a gradient.
  __device__ void algebra(const Gram& gram, const Facts& facts, int64_t image, bool scaled) {
    if (threadIdx.x >= 32) return;
    float gg = 0, lg = 0, ll = 0;
    const int outputs = at_.scaled_rows();
#pragma unroll 1
    for (int output = threadIdx.x; output < outputs; output += 32) {
      const bool is_x = output < at_.globals, is_r = output >= at_.globals + at_.locals;
      const int crop = crop_of(output), row = row_of(output);
      const bool repelled = is_r ? at_.repulsion : !is_x && at_.y_repelled();
      const float inverse = facts.inverse[row];
      Coefficients c = {0, 0, 0, 0};
      if (!is_r) {
        float dot = 0;
#pragma unroll 4
        for (int j = 0; j < at_.globals; ++j) {
          if (!is_x || j != crop) dot += gram(row, at_.t + j) * facts.inverse[at_.t + j];
        }
        const float weight = float(is_x ? at_.gg_weight : at_.lg_weight);
        const float cosines = cosine_with_sum(dot, inverse, weight, &c.targets, &c.own);
        (is_x ? gg : lg) += cosines;
      }
      if (repelled) {
        float dot = 0;
#pragma unroll 4
        for (int j = 0; j < at_.locals; ++j) {
          if (j != crop) dot += gram(row, at_.r + j) * facts.inverse[at_.r + j];
        }
        ll += cosine_with_sum(dot, inverse, float(at_.ll_weight) * repulsion_, &c.features, &c.own);
      }
      if (!a_.gradients) continue;
      facts.gradient[row] = begin_of(grad_of(output), image, crop);
      if (is_x && !at_.own_targets) facts.gradient[at_.t + crop] = nullptr;
      if (weighted(scaled)) {
        write_weights(gram, facts, c, row, is_x ? crop : -1, !is_r, repelled);
        continue;
      }
      if (is_x) {  // T holds t_i, which is no partner of x_i: taken away again
        const float away = c.targets * facts.inverse[at_.t + crop];
        (at_.own_targets ? c.own : c.other) -= away;
      }
      if (repelled) c.own -= c.features * inverse;  // R holds the row itself
      facts.limit[output] = float(largest(grad_of(output).rows.dtype));
      if (a_.p.row_scale != nullptr) scale_row(output, row, image, scaled, facts, &c);
      facts.coefficients[output] = make_float4(c.targets, c.features, c.own, c.other);
    }
    gg = warp_sum(gg);
    lg = warp_sum(lg);
    ll = warp_sum(ll);
    if (threadIdx.x == 0) record(gg, lg, ll, image);
  }

  template <bool SCALED>
  __device__ void gradient(const Stage<T>& stage, const Gram& gram, const Facts& facts, int64_t,
                           int64_t first) {
    if constexpr (kOnTensorCores && !SCALED) {
      if (weighted(false)) return multiply_weights<true>(stage, gram, facts, first);
    }
    const ColumnShare share(stage.vectors());
    if (share.idle) return;
#pragma unroll 1
    for (int vector = share.first; vector < stage.vectors(); vector += share.step) {
      float targets[N], features[N];
      sum_units<SCALED>(stage, facts, at_.t, at_.globals, vector, targets);
      sum_units<SCALED>(stage, facts, at_.r, at_.repulsion ? at_.locals : 0, vector, features);
      if (!SCALED && plain_) {
        write_plain(stage, facts, share, first, vector, targets, features);
      } else {
        write<SCALED>(stage, facts, share, first, vector, targets, features);
      }
    }
  }

  // Sums over images are sums of cosines, so that no block divides while it works on an image.
  __device__ void finish(unsigned* flag) {
    if (a_.p.reduction == Reduction::none) return;
    if (threadIdx.x == 0) {
      double* const own = a_.sums.of(blockIdx.x);
      own[0] = gg_;
      own[1] = lg_;
      own[2] = ll_;
    }
    if (!comes_last(a_.sums.finished, flag) || threadIdx.x >= 32) return;
    double gg = 0, lg = 0, ll = 0;
#pragma unroll 4
    for (int block = threadIdx.x; block < int(gridDim.x); block += 32) {
      const double* const found = a_.sums.of(block);
      gg += __ldcg(found);
      lg += __ldcg(found + 1);
      ll += __ldcg(found + 2);
    }
    gg = warp_sum(gg);
    lg = warp_sum(lg);
    ll = warp_sum(ll);
    if (threadIdx.x != 0) return;
    const double share = a_.p.reduction == Reduction::mean ? 1 / double(a_.p.images) : 1;
    store(cosine_terms(at_, gg * share, lg * share, ll * share, repulsion_), 0, 1);
  }

 private:
  static constexpr int N = kVector<T>;
  static constexpr bool kOnTensorCores = std::is_same_v<T, bf16>;
  static constexpr bool kClamped = std::is_same_v<T, f16>;

  // The factor of ll_weight: a number on the device, where one is given.
  static __device__ __forceinline__ float repulsion_of(const CosineProblem& p) {
    if (p.repulsion_weight_tensor == nullptr) return 1;
    return *static_cast<const float*>(p.repulsion_weight_tensor);
  }

  // Whether W·X is the gradient: in bf16, and as long as W is one tile. Beyond 16 rows most of W's
  // tiles would be zeros.
  __device__ __forceinline__ bool weighted(bool scaled) const {
    return kOnTensorCores && plain_ && a_.plan.gram_rows == 16 && !scaled;
  }

  // Outputs in the order of row_scale: global, local, features.
  __device__ __forceinline__ int crop_of(int output) const {
    if (output < at_.globals) return output;
    output -= at_.globals;
    return output < at_.locals ? output : output - at_.locals;
  }
  __device__ __forceinline__ int row_of(int output) const {
    if (output < at_.globals) return at_.x + output;
    output -= at_.globals;
    return output < at_.locals ? at_.y + output : at_.r + output - at_.locals;
  }
  __device__ __forceinline__ const Output& grad_of(int output) const {
    if (output < at_.globals) return a_.grad_global;
    return output < at_.globals + at_.locals ? a_.grad_local : a_.grad_features;
  }

  __device__ void scale_row(int output, int row, int64_t image, bool scaled, const Facts& facts,
                            Coefficients* c) {
    float stored = 1;
    if (grad_of(output).rows.dtype == DType::f16) {
      const double weights = output < at_.globals                ? at_.x_weights()
                             : output < at_.globals + at_.locals ? at_.y_weights(repulsion_)
                                                                 : at_.r_weights(repulsion_);
      double bound = weights * facts.inverse[row];
      if (scaled) bound *= facts.factor[row];
      const int exponent = fp16_exponent(bound);
      stored = float(ldexp(1.0, exponent));
      const float factor = 1 / stored;
      c->targets *= factor;
      c->features *= factor;
      c->own *= factor;
      c->other *= factor;
      if (exponent > 0) facts.limit[output] *= factor;
    }
    a_.p.row_scale[image * at_.scaled_rows() + output] = stored;
  }

  // Row `row` of the Gram matrix becomes that of the weights. skip: a target that is no partner.
  __device__ __forceinline__ void write_weights(const Gram& gram, const Facts& facts,
                                                const Coefficients& c, int row, int skip,
                                                bool attracted, bool repelled) {
    float* const weights = gram.row(row);
#pragma unroll 4
    for (int j = 0; j < gram.padded; ++j) weights[j] = 0;
    if (attracted) {
#pragma unroll 4
      for (int j = 0; j < at_.globals; ++j) {
        if (j != skip) weights[at_.t + j] = c.targets * facts.inverse[at_.t + j];
      }
    }
    if (repelled) {
#pragma unroll 4
      for (int j = 0; j < at_.locals; ++j) {
        weights[at_.r + j] = c.features * facts.inverse[at_.r + j];
      }
    }
    weights[row] = c.own;  // after the partners, of which it may be one by its place
  }

  // One vector of every gradient that this thread's group has.
  template <bool SCALED>
  __device__ __forceinline__ void write(const Stage<T>& stage, const Facts& facts,
                                        const ColumnShare& share, int64_t first, int vector,
                                        const float (&targets)[N], const float (&features)[N]) {
    const int outputs = at_.scaled_rows();
#pragma unroll 1
    for (int output = share.group; output < outputs; output += share.groups) {
      const int row = row_of(output);
      char* const to = facts.gradient[row];
      if (to == nullptr) continue;
      const bool is_x = output < at_.globals, is_r = output >= at_.globals + at_.locals;
      const float4 c = facts.coefficients[output];
      float values[N];
      load_row<SCALED>(stage, facts, row, vector, values);
      scale(values, c.z);
      if (!is_r) add(values, targets, c.x);
      if (is_r ? at_.repulsion : !is_x && at_.y_repelled()) add(values, features, c.y);
      if (is_x && !at_.own_targets) {
        float target[N];
        load_row<SCALED>(stage, facts, at_.t + output, vector, target);
        add(values, target, c.w);
      }
      if (SCALED) scale(values, facts.factor[row]);
      if (SCALED || careful_) clamp(values, facts.limit[output]);
      store_vector<T>(grad_of(output), to, first + vector * N, a_.p.dim, values);
    }
  }

  // As `write`, but without a choice for each vector: a loop for each kind of row.
  __device__ __forceinline__ void write_plain(const Stage<T>& stage, const Facts& facts,
                                              const ColumnShare& share, int64_t first, int vector,
                                              const float (&targets)[N],
                                              const float (&features)[N]) {
    const int64_t bytes = first * int64_t(sizeof(T)) + vector * 16;
    const bool other = !at_.own_targets, both = at_.y_repelled(), repelled = at_.repulsion;
    int output = share.group;
    // Outputs below `end`, of which output k has row k + offset.
    const auto write = [&](int end, int offset, const auto& add_partners) {
      const auto one = [&](int at) __attribute__((always_inline)) {
        const float4 c = facts.coefficients[at];
        float values[N];
        load_vector(stage, at + offset, vector, values);
        scale(values, c.z);
        add_partners(at, c, values);
        if (kClamped) clamp(values, facts.limit[at]);
        char* const to = facts.gradient[at + offset];
        if (to != nullptr) __stcs(reinterpret_cast<uint4*>(to + bytes), narrow(values, T()));
      };
      // Two at a time by hand: unrolled by the compiler, the loop would divide to count its turns.
#pragma unroll 1
      for (; output + share.groups < end; output += 2 * share.groups) {
        one(output);
        one(output + share.groups);
      }
      if (output < end) {
        one(output);
        output += share.groups;
      }
    };
    write(at_.globals, at_.x, [&](int at, const float4& c, float (&values)[N]) {
      add(values, targets, c.x);
      if (other) {
        float target[N];
        load_vector(stage, at_.t + at, vector, target);
        add(values, target, c.w);
      }
    });
    write(at_.globals + at_.locals, at_.y - at_.globals,
          [&](int, const float4& c, float (&values)[N]) {
            add(values, targets, c.x);
            if (both) add(values, features, c.y);
          });
    write(at_.scaled_rows(), at_.r - at_.globals - at_.locals,
          [&](int, const float4& c, float (&values)[N]) {
            if (repelled) add(values, features, c.y);
          });
  }

  __device__ void record(float gg, float lg, float ll, int64_t image) {
    if (a_.p.reduction == Reduction::none) {
      store(cosine_terms(at_, gg, lg, ll, repulsion_), image, a_.p.images);
      return;
    }
    gg_ += gg;
    lg_ += lg;
    ll_ += ll;
  }

  __device__ void store(const CosineTerms& terms, int64_t at, int64_t count) {
    static_cast<float*>(a_.p.total)[at] = float(terms.total);
    if (a_.p.terms == nullptr) return;
    float* const to = static_cast<float*>(a_.p.terms) + at;
    to[0] = float(terms.gg);
    to[count] = float(terms.lg);
    to[2 * count] = float(terms.ll);
  }

  // Σ row / ‖row‖ over `count` rows.
  template <bool SCALED>
  static __device__ __forceinline__ void sum_units(const Stage<T>& stage, const Facts& facts,
                                                   int first, int count, int vector,
                                                   float (&sum)[N]) {
    clear(sum);
#pragma unroll 2
    for (int row = first; row < first + count; ++row) {
      float values[N];
      load_row<SCALED>(stage, facts, row, vector, values);
      add(sum, values, facts.inverse[row]);
    }
  }

  const CosineArguments& a_;
  const CosineLayout& at_;
  const float repulsion_;
  bool plain_, careful_;  // as of the arguments, with the repulsion's weight known
  // Sums of cosines over this block's images; thread 0 has them.
  double gg_ = 0, lg_ = 0, ll_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    cosine_kernel(const __grid_constant__ CosineArguments arguments) {
  const SharedParts shared(arguments.plan, arguments.input.rows);
  CosineKernel<T> kernel(arguments);
  walk_images<T>(arguments.input, arguments.plan, shared, kernel);
  kernel.finish(shared.flag);
}

}  // namespace

Status cosine(const CosineProblem& p, const Queue& queue, Failure* failure) {
  const CosineLayout at(p);
  Input input;
  input.images = p.images;
  input.dim = p.dim;
  each_tensor(at, p, [&](const Rows& rows) { input.add(rows); });
  input.as_is = copied_as_is(input);
  const DType dtype = common_dtype(input);

  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld G=%d L=%d D=%lld %s, %d rows an image",
           static_cast<long long>(p.images), at.globals, at.locals, static_cast<long long>(p.dim),
           name_of(dtype), input.rows);
  Limits limits;
  const Status entered = enter("cosine", shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;

  const auto output = [&](const Rows& rows) { return Output(rows, p.images, p.dim, dtype); };
  const bool fp16 = p.row_scale != nullptr;
  const bool heavy = fabs(p.ll_weight()) > kOrdinaryWeight;  // of the others, none is above one
  const Output grad_global = output(p.grad_global), grad_local = output(p.grad_local),
               grad_features = output(p.grad_features);
  const bool vectors = grad_global.plain() && grad_local.plain() && grad_features.plain();
  const CosineArguments arguments{
      p,
      at,
      input,
      plan_for(input.rows, p.dim, int(dtype_bytes(dtype)), limits),
      grad_global,
      grad_local,
      grad_features,
      BlockSums(queue.workspace),
      p.grad_global.present() || p.grad_local.present() || p.grad_features.present(),
      vectors && (dtype == DType::f16 || !heavy),
      fp16 || heavy,
  };
  const auto kernel = dtype == DType::f32    ? cosine_kernel<float>
                      : dtype == DType::bf16 ? cosine_kernel<bf16>
                                             : cosine_kernel<f16>;
  return launch_walk("cosine", shape, kernel, arguments, limits, queue, failure);
}

}  // namespace cuda
}  // namespace logo
