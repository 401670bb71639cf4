// Cosines between all pairs of rows of an image, and their gradients: one launch each.
//
// Both form the Gram matrix of the rows a | b (of a alone where b is a): on the tensor cores it
// costs nothing to have more of it than the block a·bᵀ, and the squared norms are its diagonal. An
// upstream gradient has a weight of its own for every pair, so the gradient is a full product W·X:
// on the tensor cores in bf16 (weights.cuh).
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/output.cuh"
#include "cuda/vectors.cuh"
#include "cuda/walk.cuh"
#include "cuda/weights.cuh"
#include "logo/math.h"

namespace logo {
namespace cuda {
namespace {

struct SimilarityArguments {
  SimilarityProblem p;
  Input input;
  ImagePlan plan;
  int v, w;  // rows of a and of b; where b is a, of a
  int b;     // row at which b begins; 0 where b is a
  Output grad_a, grad_b;
  bool plain;    // gradients are written in whole vectors
  bool careful;  // fp16 gradients saturate
};

__device__ __forceinline__ bool is_self(const SimilarityArguments& a) { return a.b == 0; }

class SimilarityForward {
 public:
  __device__ explicit SimilarityForward(const SimilarityArguments& arguments) : a_(arguments) {}

  __device__ bool gradients() const { return false; }

  __device__ void algebra(const Gram& gram, const Facts& facts, int64_t image, bool) {
#pragma unroll 1
    for (int index = threadIdx.x; index < a_.v * a_.w; index += blockDim.x) {
      const int i = index / a_.w, j = index % a_.w;
      const float scale = facts.inverse[i] * facts.inverse[a_.b + j];
      write_element(a_.p.cosines, image, i, j, gram(i, a_.b + j) * scale);
    }
  }

  template <bool SCALED, class T>
  __device__ void gradient(const Stage<T>&, const Gram&, const Facts&, int64_t, int64_t) {}

 private:
  const SimilarityArguments& a_;
};

template <class T>
class SimilarityBackward {
 public:
  __device__ explicit SimilarityBackward(const SimilarityArguments& arguments) : a_(arguments) {}

  __device__ bool gradients() const { return true; }

  // A thread for each row. Its weights take the place of its inner products.
  __device__ void algebra(const Gram& gram, const Facts& facts, int64_t image, bool scaled) {
    for (int row = threadIdx.x; row < gram.rows; row += blockDim.x) {
      const bool to_a = row < a_.v;
      const int crop = to_a ? row : row - a_.b;
      const int partners = to_a ? a_.w : a_.v, first = to_a ? a_.b : 0;
      const bool self = is_self(a_);
      const auto upstream = [&](int j) {
        if (self) return read_at(image, crop, j) + read_at(image, j, crop);  // in both roles
        return to_a ? read_at(image, crop, j) : read_at(image, j, crop);
      };
      float own = 0;
      float* const weights = gram.row(row);
      cosine_row(weights + first, partners, self ? crop : -1, facts.inverse[row],
                 facts.inverse + first, upstream, weights + first, &own);
      facts.coefficients[row].x = own;
      facts.gradient[row] = begin_of(to_a ? a_.grad_a : a_.grad_b, image, crop);
      if constexpr (kOnTensorCores) {
        if (!a_.plain || scaled) continue;
        for (int j = 0; j < first; ++j) weights[j] = 0;
        for (int j = first + partners; j < gram.padded; ++j) weights[j] = 0;
        weights[row] = own;
      }
    }
  }

  template <bool SCALED>
  __device__ void gradient(const Stage<T>& stage, const Gram& gram, const Facts& facts, int64_t,
                           int64_t first) {
    if constexpr (kOnTensorCores && !SCALED) {
      if (a_.plain) {
        return gram.padded == 16 ? multiply_weights<true>(stage, gram, facts, first)
                                 : multiply_weights<false>(stage, gram, facts, first);
      }
    }
    write<SCALED>(a_.grad_a, 0, a_.v, a_.b, a_.w, stage, gram, facts, first);
    if (is_self(a_)) return;
    write<SCALED>(a_.grad_b, a_.b, a_.w, 0, a_.v, stage, gram, facts, first);
  }

 private:
  static constexpr bool kOnTensorCores = std::is_same_v<T, bf16>;

  __device__ __forceinline__ float read_at(int64_t image, int i, int j) const {
    const Rows& grad = a_.p.grad;
    return read_element({row_address(grad, image, i), grad.dtype, grad.element_stride}, j);
  }

  // Rows first_row.. of `count`, four at a time, from partners first_partner.. of `partners`.
  template <bool SCALED>
  __device__ void write(const Output& to, int first_row, int count, int first_partner, int partners,
                        const Stage<T>& stage, const Gram& gram, const Facts& facts,
                        int64_t first) {
    constexpr int N = kVector<T>;
    constexpr int kAtOnce = 4;
    if (!to.rows.present()) return;
    const ColumnShare share(stage.vectors());
    if (share.idle) return;
    const float limit = float(largest(to.rows.dtype));
#pragma unroll 1
    for (int vector = share.first; vector < stage.vectors(); vector += share.step) {
#pragma unroll 1
      for (int crop = share.group * kAtOnce; crop < count; crop += share.groups * kAtOnce) {
        float sums[kAtOnce][N];
        int rows[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {  // beyond the last row: that row again, not stored
          rows[k] = first_row + min(crop + k, count - 1);
          load_row<SCALED>(stage, facts, rows[k], vector, sums[k]);
          scale(sums[k], facts.coefficients[rows[k]].x);
        }
#pragma unroll 2
        for (int j = first_partner; j < first_partner + partners; ++j) {
          float partner[N];
          load_row<SCALED>(stage, facts, j, vector, partner);
#pragma unroll
          for (int k = 0; k < kAtOnce; ++k) add(sums[k], partner, gram(rows[k], j));
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (crop + k >= count) break;
          if (SCALED) scale(sums[k], facts.factor[rows[k]]);
          if (SCALED || a_.careful) clamp(sums[k], limit);
          store_vector<T>(to, facts.gradient[rows[k]], first + vector * N, a_.p.dim, sums[k]);
        }
      }
    }
  }

  const SimilarityArguments& a_;
};

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    similarity_kernel(const __grid_constant__ SimilarityArguments arguments) {
  SimilarityForward kernel(arguments);
  walk_images<T>(arguments.input, arguments.plan, SharedParts(arguments.plan, arguments.input.rows),
                 kernel);
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    similarity_backward_kernel(const __grid_constant__ SimilarityArguments arguments) {
  SimilarityBackward<T> kernel(arguments);
  walk_images<T>(arguments.input, arguments.plan, SharedParts(arguments.plan, arguments.input.rows),
                 kernel);
}

Status run(const char* name, const SimilarityProblem& p, const Queue& queue, Failure* failure,
           bool backward) {
  SimilarityArguments arguments;
  arguments.p = p;
  arguments.input.images = p.images;
  arguments.input.dim = p.dim;
  arguments.input.add(p.a);
  arguments.v = arguments.w = int(p.a.count);
  arguments.b = 0;
  if (p.b.present()) {
    arguments.input.add(p.b);
    arguments.b = arguments.v;
    arguments.w = int(p.b.count);
  }
  arguments.input.as_is = copied_as_is(arguments.input);
  const DType dtype = p.a.dtype;

  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld V=%d W=%d D=%lld %s", static_cast<long long>(p.images),
           arguments.v, arguments.w, static_cast<long long>(p.dim), name_of(dtype));
  Limits limits;
  const Status entered = enter(name, shape, queue, &limits, failure);
  if (entered != Status::ok) return entered;

  arguments.plan = plan_for(arguments.input.rows, p.dim, int(dtype_bytes(dtype)), limits);
  arguments.grad_a = Output(p.grad_a, p.images, p.dim, dtype);
  arguments.grad_b = Output(p.grad_b, p.images, p.dim, dtype);
  arguments.plain = arguments.grad_a.plain() && arguments.grad_b.plain();
  arguments.careful = dtype == DType::f16;
  const auto kernel = backward ? dtype == DType::f32    ? similarity_backward_kernel<float>
                                 : dtype == DType::bf16 ? similarity_backward_kernel<bf16>
                                                        : similarity_backward_kernel<f16>
                      : dtype == DType::f32  ? similarity_kernel<float>
                      : dtype == DType::bf16 ? similarity_kernel<bf16>
                                             : similarity_kernel<f16>;
  return launch_walk(name, shape, kernel, arguments, limits, queue, failure);
}

}  // namespace

Status similarity(const SimilarityProblem& p, const Queue& queue, Failure* failure) {
  return run("similarity", p, queue, failure, false);
}
Status similarity_backward(const SimilarityProblem& p, const Queue& queue, Failure* failure) {
  return run("similarity_backward", p, queue, failure, true);
}

}  // namespace cuda
}  // namespace logo
