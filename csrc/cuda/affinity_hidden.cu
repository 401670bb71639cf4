// Pairs of crops before the second product of the learned affinity: h_p = a[b, i] + c[b', j] is
// formed in registers wherever it is needed, and never kept. problem.h has the arrays.
//
// All four kernels move each of P·H numbers once, at most, and are bound by that. The crops of an
// image, a few KiB, come from L1 after their first use.
#include <cuda_runtime.h>

#include "cuda/affinity_sums.cuh"
#include "cuda/vectors.cuh"
#include "logo/problem.h"

namespace logo {
namespace cuda {
namespace {

// Threads that share an image where sums over its rows and its columns are both wanted, and
// columns of the matrix of pairs that are summed in registers at a time.
constexpr int kParts = 4;
constexpr int kColumns = 8;
constexpr int kHiddenSummingBlocks = 2;  // whose registers a multiprocessor has

struct AffinityHiddenArguments {
  AffinityHiddenProblem p;
  AffinityGrid grid;
  double* partials;
  Groups crops;  // of the images, for thread rows that walk over crops

  AffinityHiddenArguments(const AffinityHiddenProblem& problem, const AffinityGrid& over,
                          void* workspace)
      : p(problem),
        grid(over),
        partials(static_cast<double*>(workspace)),
        crops(p.crops, over.row_blocks * over.rows_at_once()) {}

  // The image whose c meets the a of this one.
  __device__ __forceinline__ int64_t partner(int64_t image) const {
    const int64_t rolled = image + p.roll;
    return rolled < p.images ? rolled : rolled - p.images;
  }
};

// A thread row's share of an image.
struct ImagePart {
  int slot, slots, part;  // of the images that a block has at once; of kParts
  int64_t first, end;     // crops

  __device__ ImagePart(int row, int rows, int64_t crops) {
    slot = row / kParts;
    slots = rows / kParts;
    part = row % kParts;
    first = part * crops / kParts;
    end = (part + 1) * crops / kParts;
  }
};

// With d = a − a₀, e = c − c₀ of an image's crops,
//   Σ_{i≠j} (d_i + e_j)   =  (L − 1) Σ_i (d_i + e_i)
//   Σ_{i≠j} (d_i + e_j)²  =  Σ_i [(L − 1)(d_i² + e_i²) − 2 d_i e_i]  +  2 (Σ d)(Σ e).
// In fp64, neither a distant first row nor a and c that cancel cost a digit of fp32.
template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, kHiddenSummingBlocks)
    affinity_hidden_moments_kernel(const __grid_constant__ AffinityHiddenArguments arguments) {
  __shared__ double exchange[kSumsExchange<N>];
  const AffinityHiddenProblem& p = arguments.p;
  count_batch(p);
  const AffinityPlace<N> place(arguments.grid, p.width);
  double sum[N] = {}, squares[N] = {};
  if (!place.idle) {
    float first_a[N], first_c[N];
    load<T>(p.a, place.column, first_a);
    load<T>(p.c, place.column, first_c);
    const double others = double(p.crops - 1);
#pragma unroll 1
    for (int64_t image = place.row_block * place.rows + place.row; image < p.images;
         image += arguments.grid.row_blocks * place.rows) {
      const int64_t from_a = image * p.crops, from_c = arguments.partner(image) * p.crops;
      double of_a[N] = {}, of_c[N] = {};
#pragma unroll 2
      for (int64_t crop = 0; crop < p.crops; ++crop) {
        float a[N], c[N];
        load<T>(p.a, (from_a + crop) * p.width + place.column, a);
        load<T>(p.c, (from_c + crop) * p.width + place.column, c);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const double d = double(a[k]) - double(first_a[k]);
          const double e = double(c[k]) - double(first_c[k]);
          of_a[k] += d;
          of_c[k] += e;
          squares[k] = fma(others, fma(d, d, e * e), fma(-2 * d, e, squares[k]));
        }
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        sum[k] = fma(others, of_a[k] + of_c[k], sum[k]);
        squares[k] = fma(2 * of_a[k], of_c[k], squares[k]);
      }
    }
  }
  leave_sums(place, sum, squares, p.width, exchange, arguments.partials);
}

// A thread row for each a[b, i]: the L − 1 pairs that follow one another in x.
template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, 4)
    affinity_hidden_kernel(const __grid_constant__ AffinityHiddenArguments arguments) {
  const AffinityHiddenProblem& p = arguments.p;
  const AffinityPlace<N> place(arguments.grid, p.width);
  if (place.idle) return;
  ColumnNorm<N> norm;
  norm.load(p.norm, p.width, place.column);
  const int64_t others = p.crops - 1, step = arguments.grid.row_blocks * place.rows;
  int64_t row = place.row_block * place.rows + place.row;
  GroupWalk at(row, arguments.crops);
#pragma unroll 1
  for (; row < p.images * p.crops; row += step, at.next(arguments.crops)) {
    float a[N];
    load<T>(p.a, row * p.width + place.column, a);
    const int64_t partner = arguments.partner(at.group) * p.crops;
#pragma unroll 4
    for (int64_t other = 0; other < others; ++other) {
      const int64_t j = other + (other >= at.within);
      float x[N];
      load<T>(p.c, (partner + j) * p.width + place.column, x);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        x[k] = relu_keeping_nan(norm(a[k] + x[k] - norm.mean[k], k));
      }
      store<T>(p.x, (row * others + other) * p.width + place.column, x);
    }
  }
}

// Sums over the columns of an image's matrix of pairs, from kParts thread rows to one of them.
template <int N>
struct ColumnExchange {
  float (
      *values)[kAffinityThreads];  // [kColumns · N]: a lane's neighbours are in neighbouring banks

  __device__ __forceinline__ void put(int column, const float (&sums)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) values[column * N + k][threadIdx.x] = sums[k];
  }
  // The sums of all parts, in their order; first: the thread of this lane in the first part.
  __device__ __forceinline__ void take(int column, int first, int lanes, float (&sums)[N]) const {
#pragma unroll
    for (int k = 0; k < N; ++k) {
      float sum = values[column * N + k][first];
#pragma unroll
      for (int part = 1; part < kParts; ++part) {
        sum += values[column * N + k][first + part * lanes];
      }
      sums[k] = sum;
    }
  }
};

// kParts thread rows share an image, each with some of the i. They walk over kColumns of the j at
// a time: the sums of these stay in registers, and those over j, where there are more of them, in
// to_a, which a thread alone adds to.
template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, kHiddenSummingBlocks)
    affinity_hidden_sums_kernel(const __grid_constant__ AffinityHiddenArguments arguments) {
  __shared__ __align__(8) float values[kColumns * N][kAffinityThreads];
  static_assert(sizeof(values) >= kSumsExchange<N> * sizeof(double));
  const ColumnExchange<N> exchange{values};
  const AffinityHiddenProblem& p = arguments.p;
  const AffinityPlace<N> place(arguments.grid, p.width);
  const ImagePart part(place.row, place.rows, p.crops);
  const int lanes = arguments.grid.lanes;
  ColumnNorm<N> norm;
  if (!place.idle) norm.load(p.norm, p.width, place.column);
  float sum[N] = {}, product[N] = {};
#pragma unroll 1
  for (int64_t begin = place.row_block * part.slots; begin < p.images;
       begin += arguments.grid.row_blocks * part.slots) {
    const int64_t image = begin + part.slot;
    const bool idle = place.idle || image >= p.images;
    const int64_t partner = idle ? 0 : arguments.partner(image) * p.crops;
#pragma unroll 1
    for (int64_t first_j = 0; first_j < p.crops; first_j += kColumns) {
      float to_c[kColumns][N] = {};
#pragma unroll 1
      for (int64_t i = part.first; !idle && i < part.end; ++i) {
        const int64_t row = image * p.crops + i;
        const int64_t at_a = row * p.width + place.column;
        Packed<T, N> grads[kColumns];
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          const int64_t j = first_j + column;
          if (j >= p.crops || j == i) continue;
          const int64_t pair = row * (p.crops - 1) + j - (j > i);
          grads[column].load(p.grad_x, pair * p.width + place.column);
        }
        float a[N], to_a[N] = {};
        load<T>(p.a, at_a, a);
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          const int64_t j = first_j + column;
          if (j >= p.crops || j == i) continue;
          float grad[N], c[N];
          load<T>(p.c, (partner + j) * p.width + place.column, c);
          grads[column].widen(grad);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const float centred = a[k] + c[k] - norm.mean[k];
            const float m = norm(centred, k) > 0 ? grad[k] : 0.0f;
            to_a[k] += m;
            to_c[column][k] += m;
            product[k] = fmaf(m, centred, product[k]);
          }
        }
#pragma unroll
        for (int k = 0; k < N; ++k) sum[k] += to_a[k];
        if (first_j > 0) {
          const float* const before = static_cast<const float*>(p.to_a) + at_a;
#pragma unroll
          for (int k = 0; k < N; ++k) to_a[k] += before[k];
        }
        store_floats(p.to_a, at_a, to_a);
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) exchange.put(column, to_c[column]);
      __syncthreads();
      const int first_thread = (place.row - part.part) * lanes + place.lane;
#pragma unroll
      for (int column = 0; column < kColumns; column += kParts) {
        const int64_t j = first_j + column + part.part;
        if (idle || j >= p.crops) continue;
        float total[N];
        exchange.take(column + part.part, first_thread, lanes, total);
        store_floats(p.to_c, (partner + j) * p.width + place.column, total);
      }
      __syncthreads();
    }
  }
  leave_sums(place, sum, product, p.width, reinterpret_cast<double*>(values), arguments.partials);
}

// Σ_{j≠i} (h_p − mean) = (L − 1)(a_i + c_0 − mean) + Σ_j (c_j − c_0) − (c_i − c_0), and likewise
// for c: no pass over the pairs, and differences of like numbers first.
template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, 4)
    affinity_hidden_backward_kernel(const __grid_constant__ AffinityHiddenArguments arguments) {
  __shared__ float values[2 * N][kAffinityThreads];
  const ColumnExchange<N> exchange{values};
  const AffinityHiddenProblem& p = arguments.p;
  const AffinityPlace<N> place(arguments.grid, p.width);
  const ImagePart part(place.row, place.rows, p.crops);
  const int lanes = arguments.grid.lanes;
  const int first_thread = (place.row - part.part) * lanes + place.lane;
  const float others = float(p.crops - 1);
  float mean[N], scale[N], constant[N], slope[N];
  if (!place.idle) {
    load_floats(p.norm, place.column, mean);
    load_floats(p.norm, p.width + place.column, scale);
    load_floats(p.correction, place.column, constant);
    load_floats(p.correction, p.width + place.column, slope);
  }
#pragma unroll 1
  for (int64_t begin = place.row_block * part.slots; begin < p.images;
       begin += arguments.grid.row_blocks * part.slots) {
    const int64_t image = begin + part.slot;
    const bool idle = place.idle || image >= p.images;
    const int64_t at_a = image * p.crops * p.width + place.column;
    const int64_t at_c = idle ? 0 : arguments.partner(image) * p.crops * p.width + place.column;
    float first_a[N] = {}, first_c[N] = {}, sum_a[N] = {}, sum_c[N] = {};
    if (!idle) {
      load<T>(p.a, at_a, first_a);
      load<T>(p.c, at_c, first_c);
#pragma unroll 2
      for (int64_t crop = part.first; crop < part.end; ++crop) {
        float a[N], c[N];
        load<T>(p.a, at_a + crop * p.width, a);
        load<T>(p.c, at_c + crop * p.width, c);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          sum_a[k] += a[k] - first_a[k];
          sum_c[k] += c[k] - first_c[k];
        }
      }
    }
    exchange.put(0, sum_a);
    exchange.put(1, sum_c);
    __syncthreads();
    exchange.take(0, first_thread, lanes, sum_a);
    exchange.take(1, first_thread, lanes, sum_c);
    __syncthreads();
    if (idle) continue;
#pragma unroll 1
    for (int64_t crop = part.first; crop < part.end; ++crop) {
      float a[N], c[N], to_a[N], to_c[N];
      load<T>(p.a, at_a + crop * p.width, a);
      load<T>(p.c, at_c + crop * p.width, c);
      // They may lie where the gradients are written: one thread reads and writes a number.
      load_written_floats(p.to_a, at_a + crop * p.width, to_a);
      load_written_floats(p.to_c, at_c + crop * p.width, to_c);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float d = a[k] - first_a[k], e = c[k] - first_c[k];
        const float of_a = fmaf(others, a[k] + first_c[k] - mean[k], sum_c[k] - e);
        const float of_c = fmaf(others, c[k] + first_a[k] - mean[k], sum_a[k] - d);
        to_a[k] = scale[k] * (to_a[k] - others * constant[k] - slope[k] * of_a);
        to_c[k] = scale[k] * (to_c[k] - others * constant[k] - slope[k] * of_c);
      }
      store<T>(p.grad_a, at_a + crop * p.width, to_a);
      store<T>(p.grad_c, at_c + crop * p.width, to_c);
    }
  }
}

template <class T, bool MOMENTS>
__global__ void __launch_bounds__(kFinishThreads) affinity_hidden_finish_kernel(
    const __grid_constant__ FinishArguments<AffinityHiddenProblem> arguments) {
  finish_sums<T, MOMENTS>(arguments);
}

template <class T>
__global__ void __launch_bounds__(kFoldThreads)
    affinity_hidden_fold_kernel(const __grid_constant__ AffinityHiddenProblem p) {
  fold_constants<T>(p);
}

template <class Run>
Status run_hidden(const char* name, const AffinityHiddenProblem& p,
                  std::initializer_list<const void*> arrays, const Queue& queue, Failure* failure,
                  const Run& run) {
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld L=%lld H=%lld %s", static_cast<long long>(p.images),
           static_cast<long long>(p.crops), static_cast<long long>(p.width), name_of(p.dtype));
  return run_affinity(name, shape, p.dtype, in_vectors(p.width, p.dtype, arrays), queue, failure,
                      run);
}

}  // namespace

int64_t affinity_workspace_bytes(int64_t width, int device, Failure* failure) {
  Limits limits;
  if (enter("nothing", "pair workspace", {device}, &limits, failure) != Status::ok) return 0;
  return partial_bytes(width, limits);
}

Status affinity_hidden_moments(const AffinityHiddenProblem& p, const Queue& queue,
                               Failure* failure) {
  return run_hidden(
      "affinity_hidden_moments", p, {p.a, p.c}, queue, failure,
      [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        if (is_constant(p)) {
          return launch(affinity_hidden_fold_kernel<float>, fold_grid(p.width, queue), p);
        }
        const AffinityGrid grid(p.width, Each::N, p.images, 1, kHiddenSummingBlocks, limits);
        const AffinityHiddenArguments arguments(p, grid, queue.workspace);
        const auto kernel = affinity_hidden_moments_kernel<typename Each::T, Each::N>;
        const cudaError_t error = launch(kernel, grid.grid(queue), arguments);
        if (error != cudaSuccess) return error;
        return launch(affinity_hidden_finish_kernel<typename Each::T, true>,
                      finish_grid(p.width, queue), {p, arguments.partials, grid.row_blocks});
      });
}

Status affinity_hidden(const AffinityHiddenProblem& p, const Queue& queue, Failure* failure) {
  return run_hidden("affinity_hidden", p, {p.a, p.c, p.norm, p.x}, queue, failure,
                    [&](auto numbers, const Limits& limits) {
                      using Each = decltype(numbers);
                      const AffinityGrid grid(p.width, Each::N, p.images * p.crops, 1,
                                              kStreamingBlocks, limits);
                      const auto kernel = affinity_hidden_kernel<typename Each::T, Each::N>;
                      return launch(kernel, grid.grid(queue), {p, grid, nullptr});
                    });
}

Status affinity_hidden_sums(const AffinityHiddenProblem& p, const Queue& queue, Failure* failure) {
  return run_hidden(
      "affinity_hidden_sums", p, {p.a, p.c, p.norm, p.grad_x, p.to_a, p.to_c}, queue, failure,
      [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        const AffinityGrid grid(p.width, Each::N, p.images, kParts, kHiddenSummingBlocks, limits);
        const AffinityHiddenArguments arguments(p, grid, queue.workspace);
        const auto kernel = affinity_hidden_sums_kernel<typename Each::T, Each::N>;
        const cudaError_t error = launch(kernel, grid.grid(queue), arguments);
        if (error != cudaSuccess) return error;
        return launch(affinity_hidden_finish_kernel<float, false>, finish_grid(p.width, queue),
                      {p, arguments.partials, grid.row_blocks});
      });
}

Status affinity_hidden_backward(const AffinityHiddenProblem& p, const Queue& queue,
                                Failure* failure) {
  return run_hidden(
      "affinity_hidden_backward", p,
      {p.a, p.c, p.norm, p.correction, p.to_a, p.to_c, p.grad_a, p.grad_c}, queue, failure,
      [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        const AffinityGrid grid(p.width, Each::N, p.images, kParts, kStreamingBlocks, limits);
        const auto kernel = affinity_hidden_backward_kernel<typename Each::T, Each::N>;
        return launch(kernel, grid.grid(queue), {p, grid, nullptr});
      });
}

}  // namespace cuda
}  // namespace logo
