// Log-sum-exp and softmax-weighted mean of unit negatives, seen from unit queries: three launches.
//
// The first prepares: inverse norms of the negatives, queries as operands of the tensor cores. The
// second is an attention forward with keys = values: a block keeps a tile of queries and its sums,
// and walks over negatives, each read once into shared memory for both products. Where the
// negatives are split over several blocks, the third adds up what they found, in a fixed order.
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/info_nce_arguments.cuh"
#include "cuda/info_nce_norms.cuh"
#include "cuda/info_nce_products.cuh"
#include "cuda/info_nce_ring.cuh"
#include "cuda/info_nce_softmax.cuh"
#include "cuda/launcher.h"
#include "cuda/shared.cuh"

namespace logo {
namespace cuda {
namespace {

constexpr int kPrepareThreads = 256;
constexpr int kCombineThreads = 128;
constexpr float kLn2 = 0.693147180559945309f;
// Base-2 exponents reach log2(e)/τ; see struct Softmax.
constexpr double kLeastFixed = 0.025;

// A query as an operand, its planes one after another.
template <class T>
__device__ void prepare_query(const InfoNCEArguments& a, int64_t query) {
  const int planes = a.plan.planes;
  T* const to = reinterpret_cast<T*>(a.prepared) + query * planes * a.plan.dim;
  const bool there = query < a.queries.count;
  const RowAt from{row_address(a.queries, 0, there ? query : 0), a.queries.dtype,
                   a.queries.element_stride};
  for (int64_t k = threadIdx.x % 32; k < a.plan.dim; k += 32) {
    float value = there && k < a.dim ? read_element(from, k) * kQueryLift<T> : 0.0f;
    for (int plane = 0; plane < planes; ++plane) {
      T* const at = to + plane * a.plan.dim + k;
      from_float(value, at);
      value -= to_float(*at);
    }
  }
}

// A warp for each negative and each query, those that only fill the last tile included.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads)
    info_nce_prepare_kernel(const __grid_constant__ InfoNCEArguments a) {
  const int64_t row = int64_t(blockIdx.x) * (kPrepareThreads / 32) + int64_t(threadIdx.x / 32);
  const int64_t negatives = a.plan.tiles * a.plan.tile;
  if (row < negatives) {
    float inverse = 0;
    if (row < a.negatives.count) {
      const RowAt from{row_address(a.negatives, 0, row), a.negatives.dtype,
                       a.negatives.element_stride};
      inverse = encode_inverse<T>(from, a.dim, a.as_is);
    }
    if (threadIdx.x % 32 == 0) a.inverse[row] = inverse;
  } else if (row < negatives + a.plan.query_tiles * a.plan.rows) {
    prepare_query<T>(a, row - negatives);
  }
}

template <class T, int PARTS, bool WIDE>
__global__ void __launch_bounds__(kInfoNCEThreads)
    info_nce_kernel(const __grid_constant__ InfoNCEArguments a) {
  constexpr int COLUMNS = WIDE ? kWideColumns : kNarrowColumns;
  constexpr int TILE = info_nce_tile(sizeof(T));
  constexpr int ROWS = info_nce_rows(WIDE);
  constexpr int M = ROWS / (kInfoNCEThreads / 32) / 16;
  const InfoNCEPlan& plan = a.plan;

  const int64_t query_tile = blockIdx.x % plan.query_tiles;
  const int64_t part = blockIdx.x / plan.query_tiles;
  const int chunk = int(part % plan.chunks);
  const int64_t split_index = part / plan.chunks;
  const int64_t first = split_index * plan.tiles / plan.splits;
  const int64_t end = (split_index + 1) * plan.tiles / plan.splits;

  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * (16 * M);
  const int64_t query = query_tile * ROWS + warp_row + lane / 4;
  const int plane = ROWS * plan.pitch;

  InfoNCERing<T, TILE> ring(a, dynamic_shared(), query_tile, chunk, first, end);
  const Visibility visible(a, query_tile * ROWS);
  Softmax<M> softmax(a.running);
  float means[M][COLUMNS / 8][4] = {};
  const int columns = ring.columns_of(chunk);

#pragma unroll 1
  for (int64_t tile = first; tile < end; ++tile) {
    float scores[M][TILE / 8][4] = {};
    int at = chunk;
    do {
      at = ring.next_chunk(at);
      ring.next();
      add_scores<T, PARTS, M, TILE>(scores, ring.queries() + warp_row * plan.pitch, plane,
                                    ring.negatives(), plan.pitch, ring.columns_of(at));
    } while (at != chunk);
    softmax.template cosines<TILE>(scores, ring.inverse(), visible, query, tile * TILE);
    if (a.running) softmax.raise(scores, a.scale, means);
    softmax.template weigh<TILE>(scores, ring.inverse(), a.scale, kWeightLift<T>);
    add_means<T, PARTS, M, TILE, COLUMNS>(means, scores, ring.negatives(), plan.pitch, columns);
  }
  softmax.finish();

  const int64_t first_column = int64_t(chunk) * plan.chunk + 2 * (lane % 4);
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int64_t row = query + 16 * m + 8 * side;
      if (row >= a.queries.count) continue;
      const float maximum = softmax.maximum[m][side], sum = softmax.sum[m][side];
      const bool states = chunk == 0 && lane % 4 == 0;  // of several lanes that know the same
      if (plan.splits > 1) {
        const int64_t index = split_index * a.queries.count + row;
        if (states) a.sums[index] = make_float2(maximum, sum);
        float* const to = a.means + index * plan.dim + first_column;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
          if (8 * j < columns) {
            *reinterpret_cast<float2*>(to + 8 * j) =
                make_float2(means[m][j][2 * side], means[m][j][2 * side + 1]);
          }
        }
      } else {
        if (states) a.lse[row] = fmaf(maximum, kLn2, logf(sum));
        const float divisor = sum * kWeightLift<T>;
        float* const to = a.mean + row * a.dim + first_column;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (first_column + 8 * j + k < a.dim && 8 * j < columns) {
              to[8 * j + k] = means[m][j][2 * side + k] / divisor;
            }
          }
        }
      }
    }
  }
}

// A thread for each element of the mean.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    info_nce_combine_kernel(const __grid_constant__ InfoNCEArguments a) {
  const int64_t index = int64_t(blockIdx.x) * kCombineThreads + threadIdx.x;
  const int64_t query = index / a.plan.dim, column = index - query * a.plan.dim;
  if (query >= a.queries.count || column >= a.dim) return;
  const int64_t splits = a.plan.splits, queries = a.queries.count;
  float maximum = -INFINITY;
#pragma unroll 4
  for (int64_t k = 0; k < splits; ++k) maximum = fmaxf(maximum, a.sums[k * queries + query].x);
  float sum = 0, mean = 0;
#pragma unroll 4
  for (int64_t k = 0; k < splits; ++k) {
    const float2 found = a.sums[k * queries + query];
    const float weight = exp2f(found.x - maximum);  // 0 of a part in which nothing is seen
    sum = fmaf(weight, found.y, sum);
    mean = fmaf(weight, a.means[(k * queries + query) * a.plan.dim + column], mean);
  }
  a.mean[query * a.dim + column] = mean / (sum * kWeightLift<T>);
  if (column == 0) a.lse[query] = fmaf(maximum, kLn2, logf(sum));
}

// Whether queries and weights are to have more precision than the negatives.
bool exact(const InfoNCEProblem& p) { return p.owed != p.negatives.dtype && p.owed != DType::bf16; }

InfoNCEPlan plan_of(const InfoNCEProblem& p, const Limits& limits) {
  int bytes = 2, planes = 1;
  switch (p.negatives.dtype) {
    case DType::f16: planes = exact(p) ? kExactParts<f16> : 1; break;
    case DType::bf16: planes = exact(p) ? kExactParts<bf16> : 1; break;
    default: bytes = 4;  // split into parts in registers
  }
  return info_nce_plan(p.queries.count, p.negatives.count, p.dim, bytes, planes, limits);
}

struct Kernels {
  void (*prepare)(InfoNCEArguments);
  void (*main)(InfoNCEArguments);
  void (*combine)(InfoNCEArguments);
};

template <class T>
Kernels kernels_for(bool exact, bool wide) {
  auto main = info_nce_kernel<T, kExactParts<T>, true>;
  if constexpr (!std::is_same_v<T, float>) {
    if (!exact) main = wide ? info_nce_kernel<T, 1, true> : info_nce_kernel<T, 1, false>;
  }
  return {info_nce_prepare_kernel<T>, main, info_nce_combine_kernel<T>};
}

Kernels kernels_of(const InfoNCEProblem& p, const InfoNCEPlan& plan) {
  switch (p.negatives.dtype) {
    case DType::bf16: return kernels_for<bf16>(exact(p), plan.wide);
    case DType::f16: return kernels_for<f16>(exact(p), plan.wide);
    default: return kernels_for<float>(true, true);
  }
}

struct Shape {
  char text[160];

  explicit Shape(const InfoNCEProblem& p) {
    snprintf(text, sizeof(text), "N=%lld K=%lld D=%lld %s for %s",
             static_cast<long long>(p.queries.count), static_cast<long long>(p.negatives.count),
             static_cast<long long>(p.dim), name_of(p.negatives.dtype), name_of(p.owed));
  }
};

cudaError_t launch_all(const Kernels& kernels, const InfoNCEArguments& a, const Queue& queue) {
  const InfoNCEPlan& plan = a.plan;
  const auto grid = [&](int64_t items, int threads, int64_t shared) {
    return Grid{unsigned(items), unsigned(threads), size_t(shared),
                static_cast<cudaStream_t>(queue.stream)};
  };
  const auto parcels = [](int64_t items, int64_t of) { return (items + of - 1) / of; };
  Plan asked;  // allows the kernel its shared memory
  asked.threads = plan.threads;
  asked.shared_bytes = plan.shared_bytes;
  int fit = 0;
  cudaError_t error = Occupancy::blocks(kernels.main, queue.device, asked, &fit);
  if (error == cudaSuccess && fit == 0) error = cudaErrorInvalidConfiguration;
  if (error != cudaSuccess) return error;

  const int64_t rows = plan.tiles * plan.tile + plan.query_tiles * plan.rows;
  error = launch(kernels.prepare, grid(parcels(rows, kPrepareThreads / 32), kPrepareThreads, 0), a);
  if (error != cudaSuccess) return error;
  error = launch(kernels.main, grid(plan.blocks(), plan.threads, plan.shared_bytes), a);
  if (error != cudaSuccess || plan.splits == 1) return error;
  const int64_t elements = a.queries.count * plan.dim;
  return launch(kernels.combine, grid(parcels(elements, kCombineThreads), kCombineThreads, 0), a);
}

}  // namespace

int64_t info_nce_workspace_bytes(const InfoNCEProblem& p, int device, Failure* failure) {
  const Shape shape(p);
  Limits limits;
  if (enter("info_nce", shape.text, {device}, &limits, failure) != Status::ok) return 0;
  const int64_t bytes = plan_of(p, limits).workspace_bytes;
  if (bytes == 0) {
    fail(failure, "info_nce", shape.text, device,
         "its shared memory does not hold a tile of queries and negatives; use another backend");
  }
  return bytes;
}

Status info_nce(const InfoNCEProblem& p, const Queue& queue, Failure* failure) {
  const Shape shape(p);
  Limits limits;
  const Status entered = enter("info_nce", shape.text, queue, &limits, failure);
  if (entered != Status::ok) return entered;

  InfoNCEArguments a;
  a.plan = plan_of(p, limits);
  if (a.plan.threads == 0) {
    return fail(failure, "info_nce", shape.text, queue.device,
                "its shared memory does not hold a tile of queries and negatives; use another "
                "backend");
  }
  const bool f16_kept = p.negatives.dtype == DType::f16;
  const double lift = f16_kept ? kQueryLift<f16> : 1.0f;
  a.queries = p.queries;
  a.negatives = p.negatives;
  a.dim = p.dim;
  a.as_is = in_vectors(p.negatives, 1, p.dim);
  a.running = f16_kept || p.temperature < kLeastFixed;
  a.scale = float(1.4426950408889634 / p.temperature / lift);
  a.own_queries = p.own_queries;
  a.own_negatives = p.own_negatives;
  char* const workspace = static_cast<char*>(queue.workspace);
  a.inverse = reinterpret_cast<float*>(workspace);
  a.prepared = reinterpret_cast<unsigned char*>(workspace + a.plan.queries_at);
  a.sums = reinterpret_cast<float2*>(workspace + a.plan.sums_at);
  a.means = reinterpret_cast<float*>(workspace + a.plan.means_at);
  a.lse = p.lse;
  a.mean = p.mean;
  const cudaError_t error = launch_all(kernels_of(p, a.plan), a, queue);
  return error == cudaSuccess
             ? Status::ok
             : fail(failure, "info_nce", shape.text, queue.device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
