// InfoNCE (eq. 1): losses of queries with positives against negatives, in three launches.
//
// The prologue prepares rows. The second launch is an attention forward with keys = values: a block
// keeps a tile of queries and its sums, and walks over negatives, each read once into shared memory
// for both products. The epilogue adds up the sums of blocks that share negatives, turns
// log-sum-exps into losses, and sums these over pairs and images.
#include <cuda_runtime.h>

#include <cmath>

#include "cuda/device.h"
#include "cuda/info_nce_arguments.cuh"
#include "cuda/info_nce_epilogue.cuh"
#include "cuda/info_nce_products.cuh"
#include "cuda/info_nce_prologue.cuh"
#include "cuda/info_nce_ring.cuh"
#include "cuda/info_nce_softmax.cuh"
#include "cuda/shared.cuh"
#include "logo/running_maximum.h"

namespace logo {
namespace cuda {
namespace {

constexpr char kTooSmall[] =
    "its shared memory does not hold a tile of queries and negatives; use another backend";

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
  const float scale = scale_of<T>(a);

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
    if (a.running) softmax.raise(scores, scale, means);
    softmax.template weigh<TILE>(scores, ring.inverse(), scale, kWeightLift<T>);
    add_means<T, PARTS, M, TILE, COLUMNS>(means, scores, ring.negatives(), plan.pitch, columns);
  }
  softmax.finish();

  const int64_t first_column = int64_t(chunk) * plan.chunk + 2 * (lane % 4);
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int64_t row = query + 16 * m + 8 * side;
      if (row >= a.count) continue;
      const float maximum = softmax.maximum[m][side], sum = softmax.sum[m][side];
      const int64_t index = split_index * a.count + row;
      // Of several lanes that know the same, and of several chunks.
      if (chunk == 0 && lane % 4 == 0) a.sums[index] = make_float2(maximum, sum);
      if (plan.splits > 1) {
        float* const to = a.means + index * plan.dim + first_column;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
          if (8 * j < columns) {
            *reinterpret_cast<float2*>(to + 8 * j) =
                make_float2(means[m][j][2 * side], means[m][j][2 * side + 1]);
          }
        }
      } else {
        const float divisor = sum * kWeightLift<T>;
        float* const to = a.mean_of(row) + first_column;
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
#pragma unroll
          for (int k = 0; k < 2; ++k) {
            if (first_column + 8 * j + k < a.p.dim && 8 * j < columns) {
              to[8 * j + k] = means[m][j][2 * side + k] / divisor;
            }
          }
        }
      }
    }
  }
}

// The sizes that a plan depends on, beside the device.
struct InfoNCESizes {
  int64_t queries, negatives, dim;
  DType owed;  // of the queries: the precision that they are owed
  DType kept;  // of the negatives
};

InfoNCESizes sizes_of(const InfoNCEProblem& p) {
  const Rows& negatives = p.negatives.present() ? p.negatives : p.positives;
  return {p.queries(), p.negative_count(), p.dim, p.query_dtype(), negatives.dtype};
}

// Whether queries and weights are to have more precision than the negatives.
bool exact(const InfoNCESizes& of) { return of.owed != of.kept && of.owed != DType::bf16; }

InfoNCEPlan plan_of(const InfoNCESizes& of, const Limits& limits) {
  int bytes = 2, planes = 1;
  switch (of.kept) {
    case DType::f16: planes = exact(of) ? kExactParts<f16> : 1; break;
    case DType::bf16: planes = exact(of) ? kExactParts<bf16> : 1; break;
    default: bytes = 4;  // split into parts in registers
  }
  return info_nce_plan(of.queries, of.negatives, of.dim, bytes, planes, limits);
}

// Puts the sizes into words, which costs time, only here, where something has failed.
Status failed(const InfoNCESizes& of, int device, const char* reason, Failure* failure) {
  char shape[160];
  snprintf(shape, sizeof(shape), "N=%lld K=%lld D=%lld %s for %s",
           static_cast<long long>(of.queries), static_cast<long long>(of.negatives),
           static_cast<long long>(of.dim), name_of(of.kept), name_of(of.owed));
  return fail(failure, "info_nce", shape, device, reason);
}

struct Kernels {
  void (*prologue)(InfoNCEArguments);
  void (*main)(InfoNCEArguments);
  void (*epilogue)(InfoNCEArguments);
};

template <class T>
Kernels kernels_for(bool exact, bool wide) {
  auto main = info_nce_kernel<T, kExactParts<T>, true>;
  if constexpr (!std::is_same_v<T, float>) {
    if (!exact) main = wide ? info_nce_kernel<T, 1, true> : info_nce_kernel<T, 1, false>;
  }
  return {info_nce_prologue_kernel<T>, main, info_nce_epilogue_kernel<T>};
}

Kernels kernels_of(const InfoNCESizes& of, bool wide) {
  switch (of.kept) {
    case DType::bf16: return kernels_for<bf16>(exact(of), wide);
    case DType::f16: return kernels_for<f16>(exact(of), wide);
    default: return kernels_for<float>(true, true);
  }
}

cudaError_t launch_all(const Kernels& kernels, const InfoNCEArguments& a, const Queue& queue) {
  const InfoNCEPlan& plan = a.plan;
  const auto grid = [&](int64_t items, int threads, int64_t shared) {
    return Grid{unsigned(items), unsigned(threads), size_t(shared),
                static_cast<cudaStream_t>(queue.stream)};
  };
  const auto warps = [&](int64_t items, int threads) {
    return grid((items + threads / 32 - 1) / (threads / 32), threads, 0);
  };
  int fit = 0;  // asking also allows the kernel its shared memory
  cudaError_t error =
      Occupancy::blocks(kernels.main, queue.device, plan.threads, plan.shared_bytes, &fit);
  if (error == cudaSuccess && fit == 0) error = cudaErrorInvalidConfiguration;
  if (error != cudaSuccess) return error;

  const int64_t rows = plan.query_tiles * plan.rows + plan.tiles * plan.tile;
  error = launch(kernels.prologue, warps(rows, kPrologueThreads), a);
  if (error != cudaSuccess) return error;
  error = launch(kernels.main, grid(plan.blocks(), plan.threads, plan.shared_bytes), a);
  if (error != cudaSuccess) return error;
  return launch(kernels.epilogue, warps(a.count, kEpilogueThreads), a);
}

// All arguments but the plan and the workspace.
InfoNCEArguments arguments_of(const InfoNCEProblem& p) {
  const bool batch = !p.negatives.present();
  const double globals = double(p.global_crops.count), locals = double(p.local_crops.count);
  const double share = p.reduction == Reduction::mean ? 1 / double(p.images) : 1;
  InfoNCEArguments a(p);
  a.in_quads = in_quads(p.global_crops, p.images, p.dim) &&
               in_quads(p.local_crops, p.images, p.dim) && in_quads(p.positives, p.images, p.dim);
  a.negatives = batch ? Negatives(p.positives, p.images, p.dim) : Negatives(p.negatives, p.dim);
  const bool f16_kept = a.negatives.rows.dtype == DType::f16;
  a.running = f16_kept || p.temperature_tensor != nullptr || p.temperature < kLeastFixedTemperature;
  a.tau = nearest(p.temperature);
  a.scale = steepness(1.4426950408889634 / p.temperature / (f16_kept ? kQueryLift<f16> : 1.0f));
  a.gg_weight = share * p.gg_weight();
  a.lg_weight = share * p.lg_weight();
  a.gg_mean = globals > 1 ? share / (globals * (globals - 1)) : 0;
  a.lg_mean = locals > 0 ? share / (locals * double(p.positives.count)) : 0;
  a.own_negatives = p.own_negatives();
  a.own_queries = a.own_negatives > 0 ? p.crops() : 0;
  return a;
}

}  // namespace

int64_t info_nce_workspace_bytes(int64_t queries, int64_t negatives, int64_t dim, DType owed,
                                 DType kept, int device, Failure* failure) {
  const InfoNCESizes sizes{queries, negatives, dim, owed, kept};
  Limits limits;
  const cudaError_t error = enter(device, &limits);
  if (error != cudaSuccess) {
    failed(sizes, device, cudaGetErrorString(error), failure);
    return 0;
  }
  const int64_t bytes = plan_of(sizes, limits).workspace_bytes;
  if (bytes == 0) failed(sizes, device, kTooSmall, failure);
  return bytes;
}

Status info_nce(const InfoNCEProblem& p, const Queue& queue, Failure* failure) {
  const InfoNCESizes sizes = sizes_of(p);
  Limits limits;
  cudaError_t error = enter(queue.device, &limits);
  if (error != cudaSuccess) {
    return failed(sizes, queue.device, cudaGetErrorString(error), failure);
  }
  InfoNCEArguments a = arguments_of(p);
  a.plan = plan_of(sizes, limits);
  if (a.plan.threads == 0) return failed(sizes, queue.device, kTooSmall, failure);
  char* const workspace = static_cast<char*>(queue.workspace);
  a.inverse = reinterpret_cast<float*>(workspace);
  a.prepared = reinterpret_cast<unsigned char*>(workspace + a.plan.queries_at);
  a.finished = reinterpret_cast<unsigned*>(workspace + a.plan.finished_at);
  a.losses = reinterpret_cast<float*>(workspace + a.plan.losses_at);
  a.sums = reinterpret_cast<float2*>(workspace + a.plan.sums_at);
  a.means = reinterpret_cast<float*>(workspace + a.plan.means_at);
  error = launch_all(kernels_of(sizes, a.plan.wide), a, queue);
  return error == cudaSuccess ? Status::ok
                              : failed(sizes, queue.device, cudaGetErrorString(error), failure);
}

}  // namespace cuda
}  // namespace logo
