// Pairs after the second product of the learned affinity: f_p = w·relu(n(y_p)) + b, and the mean of
// link(f_p) over each image's pairs. problem.h has the arrays.
//
// Every kernel reads y once, and is bound by that.
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/affinity_sums.cuh"
#include "cuda/vectors.cuh"
#include "cuda/warp.cuh"
#include "logo/problem.h"

namespace logo {
namespace cuda {
namespace {

constexpr int kRun = 8;            // rows of y that a thread has under way
constexpr int kWritten = 4;        // the same where it also writes
constexpr int kMomentsBlocks = 3;  // whose registers a multiprocessor has
constexpr int kWarpPairs = 16;     // pairs that a warp has under way, and of which it sums at once
constexpr int kMostWarps = 8;      // for an image

struct AffinityOutputArguments {
  AffinityOutputProblem p;
  AffinityGrid grid;
  double* partials;
  int64_t rows, block_rows;  // of y; that a block walks over, and the last one perhaps fewer
  Groups pairs;              // of the images

  AffinityOutputArguments(const AffinityOutputProblem& problem, const AffinityGrid& over,
                          void* workspace)
      : p(problem),
        grid(over),
        partials(static_cast<double*>(workspace)),
        rows(p.images * p.pairs),
        block_rows((rows + grid.row_blocks - 1) / grid.row_blocks),
        pairs(p.pairs, grid.rows_at_once()) {}
};

// The rows of y that a thread walks over: first, first + step, ..
struct RowWalk {
  int64_t first, end;
  int step;

  template <int N>
  __device__ RowWalk(const AffinityPlace<N>& place, const AffinityOutputArguments& arguments)
      : first(place.row_block * arguments.block_rows + place.row), step(place.rows) {
    end = min((place.row_block + 1) * arguments.block_rows, arguments.rows);
  }
};

// A run of rows and the gradients at their f, all under way at once. Beyond the last row that one
// is read again, since a branch would wait for it.
template <class T, int N, int COUNT>
struct Run {
  Packed<T, N> y[COUNT];
  float slope[COUNT], grad[COUNT];

  // From `row` on; `at` is its image, and goes with it.
  __device__ __forceinline__ void load(const AffinityOutputArguments& arguments, int64_t column,
                                       int64_t row, const RowWalk& walk, GroupWalk* at) {
    const AffinityOutputProblem& p = arguments.p;
#pragma unroll
    for (int r = 0; r < COUNT; ++r, row += walk.step, at->next(arguments.pairs)) {
      const int64_t there = min(row, walk.end - 1);
      y[r].load(p.y, there * p.width + column);
      slope[r] = __ldg(static_cast<const float*>(p.slope) + there);
      grad[r] =
          __ldg(static_cast<const float*>(p.grad) + min(at->group, p.images - 1) * p.grad_stride);
    }
  }
};

// A run of rows has its mean, and its squares about the mean, in fp32, relative to its first row.
// Its contributions to the sums of y − pivot are fp64.
template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, kMomentsBlocks)
    affinity_output_moments_kernel(const __grid_constant__ AffinityOutputArguments arguments) {
  __shared__ double exchange[kSumsExchange<N>];
  const AffinityOutputProblem& p = arguments.p;
  count_batch(p);
  const AffinityPlace<N> place(arguments.grid, p.width);
  const RowWalk walk(place, arguments);
  double sum[N] = {}, squares[N] = {};
  if (!place.idle) {
    float pivot[N];
    load<T>(p.y, place.column, pivot);
    int64_t row = walk.first;
#pragma unroll 1
    for (; row + (kRun - 1) * walk.step < walk.end; row += kRun * walk.step) {
      Packed<T, N> run[kRun];
#pragma unroll
      for (int k = 0; k < kRun; ++k) {
        run[k].load(p.y, (row + k * walk.step) * p.width + place.column);
      }
      float first[N], mean[N] = {}, deviations[N] = {};  // the mean is that beyond the first
      run[0].widen(first);
#pragma unroll
      for (int r = 1; r < kRun; ++r) {
        float y[N];
        run[r].widen(y);
#pragma unroll
        for (int k = 0; k < N; ++k) mean[k] += y[k] - first[k];
      }
      scale(mean, 1.0f / kRun);
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        float y[N];
        run[r].widen(y);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const float d = y[k] - first[k] - mean[k];
          deviations[k] = fmaf(d, d, deviations[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double d = double(first[k]) - double(pivot[k]) + double(mean[k]);
        sum[k] = fma(double(kRun), d, sum[k]);
        squares[k] += fma(kRun * d, d, double(deviations[k]));
      }
    }
#pragma unroll 1
    for (; row < walk.end; row += walk.step) {
      float y[N];
      load<T>(p.y, row * p.width + place.column, y);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const double d = double(y[k]) - double(pivot[k]);
        sum[k] += d;
        squares[k] = fma(d, d, squares[k]);
      }
    }
  }
  leave_sums(place, sum, squares, p.width, exchange, arguments.partials);
}

struct Linked {
  float value, slope;
};

// link(f) and its derivative.
__device__ __forceinline__ Linked link_of(Link link, float f) {
  if (link == Link::identity) return {f, 1};
  const float sign = link == Link::softplus ? 1.0f : -1.0f;
  const float g = sign * f;
  // Neither exponential overflows into anything but the limit.
  return {fmaxf(g, 0.0f) + log1pf(expf(-fabsf(g))), sign / (1 + expf(-g))};
}

// A block for an image, a warp for kWarpPairs of its pairs at a time. Lanes take vectors of H'; a
// lane's part of the norm and of the weight serves all of these pairs.
template <class T, int N>
__global__ void __launch_bounds__(kMostWarps * 32)
    affinity_output_kernel(const __grid_constant__ AffinityOutputProblem p) {
  __shared__ float found[kMostWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const float bias = __ldg(static_cast<const float*>(p.last_bias));
#pragma unroll 1
  for (int64_t image = blockIdx.x; image < p.images; image += gridDim.x) {
    float sum = 0;
#pragma unroll 1
    for (int64_t first = warp * kWarpPairs; first < p.pairs; first += warps * kWarpPairs) {
      float products[kWarpPairs];
      clear(products);
      const int64_t row = image * p.pairs + first;
#pragma unroll 1
      for (int64_t column = lane * N; column < p.width; column += 32 * N) {
        Packed<T, N> rows[kWarpPairs];
#pragma unroll
        for (int k = 0; k < kWarpPairs; ++k) {
          // Beyond the last pair it is read again, to no end.
          const int64_t pair = first + k < p.pairs ? k : p.pairs - 1 - first;
          rows[k].load(p.y, (row + pair) * p.width + column);
        }
        ColumnNorm<N> norm;
        norm.load(p.norm, p.width, column);
        float weight[N];
        load_floats(p.last, column, weight);
#pragma unroll
        for (int pair = 0; pair < kWarpPairs; ++pair) {
          float y[N];
          rows[pair].widen(y);
#pragma unroll
          for (int k = 0; k < N; ++k) {
            const float x = relu_keeping_nan(norm(y[k] - norm.mean[k], k));
            products[pair] = fmaf(weight[k], x, products[pair]);
          }
        }
      }
      const float f = warp_sums_of_16(products) + bias;
      if (lane % 2 == 0 && first + lane / 2 < p.pairs) {
        const Linked linked = link_of(p.link, f);
        static_cast<float*>(p.slope)[row + lane / 2] = linked.slope / float(p.pairs);
        sum += linked.value;
      }
    }
    sum = warp_sum(sum);
    if (lane == 0) found[warp] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int k = 1; k < warps; ++k) sum += found[k];
      static_cast<float*>(p.value)[image] = sum / float(p.pairs);
    }
    __syncthreads();
  }
}

template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, kSummingBlocks)
    affinity_output_sums_kernel(const __grid_constant__ AffinityOutputArguments arguments) {
  __shared__ double exchange[kSumsExchange<N>];
  const AffinityOutputProblem& p = arguments.p;
  const AffinityPlace<N> place(arguments.grid, p.width);
  const RowWalk walk(place, arguments);
  float sum[N] = {}, product[N] = {};
  if (!place.idle) {
    ColumnNorm<N> norm;
    norm.load(p.norm, p.width, place.column);
    GroupWalk at(walk.first, arguments.pairs);
#pragma unroll 1
    for (int64_t row = walk.first; row < walk.end; row += kRun * walk.step) {
      Run<T, N, kRun> run;
      run.load(arguments, place.column, row, walk, &at);
#pragma unroll
      for (int r = 0; r < kRun; ++r) {
        if (row + r * walk.step >= walk.end) continue;
        const float t = run.slope[r] * run.grad[r];
        float y[N];
        run.y[r].widen(y);
#pragma unroll
        for (int k = 0; k < N; ++k) {
          const float centred = y[k] - norm.mean[k];
          const float m = norm(centred, k) > 0 ? t : 0.0f;
          sum[k] += m;
          product[k] = fmaf(m, centred, product[k]);
        }
      }
    }
  }
  leave_sums(place, sum, product, p.width, exchange, arguments.partials);
}

template <class T, int N>
__global__ void __launch_bounds__(kAffinityThreads, 4)
    affinity_output_backward_kernel(const __grid_constant__ AffinityOutputArguments arguments) {
  const AffinityOutputProblem& p = arguments.p;
  const AffinityPlace<N> place(arguments.grid, p.width);
  if (place.idle) return;
  ColumnNorm<N> norm;
  norm.load(p.norm, p.width, place.column);
  float weight[N], constant[N], slope[N];
  load_floats(p.last, place.column, weight);
  load_floats(p.correction, place.column, constant);
  load_floats(p.correction, p.width + place.column, slope);
  const RowWalk walk(place, arguments);
  GroupWalk at(walk.first, arguments.pairs);
#pragma unroll 1
  for (int64_t row = walk.first; row < walk.end; row += kWritten * walk.step) {
    Run<T, N, kWritten> run;
    run.load(arguments, place.column, row, walk, &at);
#pragma unroll
    for (int r = 0; r < kWritten; ++r) {
      const int64_t own = row + r * walk.step;
      if (own >= walk.end) continue;
      const float t = run.slope[r] * run.grad[r];
      float y[N];
      run.y[r].widen(y);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float centred = y[k] - norm.mean[k];
        const float m = norm(centred, k) > 0 ? t * weight[k] : 0.0f;
        y[k] = norm.scale[k] * (m - constant[k] - slope[k] * centred);
      }
      store<T>(p.grad_y, own * p.width + place.column, y);
    }
  }
}

template <class T, bool MOMENTS>
__global__ void __launch_bounds__(kFinishThreads) affinity_output_finish_kernel(
    const __grid_constant__ FinishArguments<AffinityOutputProblem> arguments) {
  finish_sums<T, MOMENTS>(arguments);
}

template <class T>
__global__ void __launch_bounds__(kFoldThreads)
    affinity_output_fold_kernel(const __grid_constant__ AffinityOutputProblem p) {
  fold_constants<T>(p);
}

template <class Run>
Status run_output(const char* name, const AffinityOutputProblem& p,
                  std::initializer_list<const void*> arrays, const Queue& queue, Failure* failure,
                  const Run& run) {
  char shape[160];
  snprintf(shape, sizeof(shape), "B=%lld of %lld pairs H=%lld %s", static_cast<long long>(p.images),
           static_cast<long long>(p.pairs), static_cast<long long>(p.width), name_of(p.dtype));
  return run_affinity(name, shape, p.dtype, in_vectors(p.width, p.dtype, arrays), queue, failure,
                      run);
}

}  // namespace

Status affinity_output_moments(const AffinityOutputProblem& p, const Queue& queue,
                               Failure* failure) {
  return run_output(
      "affinity_output_moments", p, {p.y}, queue, failure, [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        if (is_constant(p)) {
          return launch(affinity_output_fold_kernel<float>, fold_grid(p.width, queue), p);
        }
        const AffinityGrid grid(p.width, Each::N, (p.images * p.pairs + kRun - 1) / kRun, 1,
                                kMomentsBlocks, limits);
        const AffinityOutputArguments arguments(p, grid, queue.workspace);
        const auto kernel = affinity_output_moments_kernel<typename Each::T, Each::N>;
        const cudaError_t error = launch(kernel, grid.grid(queue), arguments);
        if (error != cudaSuccess) return error;
        return launch(affinity_output_finish_kernel<typename Each::T, true>,
                      finish_grid(p.width, queue), {p, arguments.partials, grid.row_blocks});
      });
}

Status affinity_output(const AffinityOutputProblem& p, const Queue& queue, Failure* failure) {
  return run_output("affinity_output", p, {p.y, p.norm, p.last}, queue, failure,
                    [&](auto numbers, const Limits& limits) {
                      using Each = decltype(numbers);
                      const int64_t needed = (p.pairs + kWarpPairs - 1) / kWarpPairs;
                      const int warps = int(needed < kMostWarps ? needed : kMostWarps);
                      const int64_t most =
                          int64_t(limits.multiprocessors) * kStreamingBlocks * kMostWarps / warps;
                      const Grid grid{unsigned(p.images < most ? p.images : most),
                                      unsigned(warps * 32), 0,
                                      static_cast<cudaStream_t>(queue.stream)};
                      return launch(affinity_output_kernel<typename Each::T, Each::N>, grid, p);
                    });
}

Status affinity_output_sums(const AffinityOutputProblem& p, const Queue& queue, Failure* failure) {
  return run_output(
      "affinity_output_sums", p, {p.y, p.norm}, queue, failure,
      [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        const AffinityGrid grid(p.width, Each::N, (p.images * p.pairs + kRun - 1) / kRun, 1,
                                kSummingBlocks, limits);
        const AffinityOutputArguments arguments(p, grid, queue.workspace);
        const auto kernel = affinity_output_sums_kernel<typename Each::T, Each::N>;
        const cudaError_t error = launch(kernel, grid.grid(queue), arguments);
        if (error != cudaSuccess) return error;
        return launch(affinity_output_finish_kernel<float, false>, finish_grid(p.width, queue),
                      {p, arguments.partials, grid.row_blocks});
      });
}

Status affinity_output_backward(const AffinityOutputProblem& p, const Queue& queue,
                                Failure* failure) {
  return run_output(
      "affinity_output_backward", p, {p.y, p.norm, p.last, p.correction, p.grad_y}, queue, failure,
      [&](auto numbers, const Limits& limits) {
        using Each = decltype(numbers);
        const AffinityGrid grid(p.width, Each::N, p.images * p.pairs, 1, kStreamingBlocks, limits);
        const auto kernel = affinity_output_backward_kernel<typename Each::T, Each::N>;
        return launch(kernel, grid.grid(queue), {p, grid, nullptr});
      });
}

}  // namespace cuda
}  // namespace logo
