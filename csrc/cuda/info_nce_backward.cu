// InfoNCE's backward in one launch: gradients of the queries and of the temperature.
//
// With w = upstream · pull of a pair, O the mean of the negatives and δ = Σ w (O − k̂⁺) over a
// query's pairs, the query's gradient is (δ − (δ·q̂) q̂)/(τ‖q‖), and that of τ −Σ δ·q̂ / τ².
#include <cuda_runtime.h>

#include "cuda/info_nce_launcher.h"
#include "cuda/info_nce_rows.cuh"
#include "cuda/output.cuh"
#include "cuda/ticket.cuh"

namespace logo {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 8;  // of a multiprocessor; the rest of the queries they walk over
constexpr int kHeld = 4;    // words of four numbers of δ that a lane holds at once

struct BackwardArguments {
  Queries queries;
  QuadRows positives, mean;
  Rows upstream, pull;
  QuadRows grad_global, grad_local;
  int64_t dim;
  float tau;
  const float* tau_at;  // in its place, unless null
  float* grad_tau;      // null: not wanted
  // For the sum over queries: blocks that have finished (zero between launches), and what each
  // found of Σ δ·q̂.
  unsigned* finished;
  double* found;
};

// A lane's part of 32 positives: what the unit vector of one of them is multiplied by.
struct Pulled {
  float coefficient = 0, factor = 1;  // of factor · row
};

class Backward {
 public:
  __device__ __forceinline__ Backward(const BackwardArguments& arguments, int64_t query)
      : a_(arguments),
        at_(a_.queries.at(query)),
        crop_(at_.crop + (at_.global ? 0 : a_.queries.global.rows.count)),
        row_(a_.queries.row(at_)),
        mean_(a_.mean.row(at_.image, crop_)),
        unit_(unit_of(row_, a_.dim)) {
    float sum = 0;
    for (int64_t p = threadIdx.x % 32; p < positives(); p += 32) sum += weight(p);
    weights_ = warp_sum(sum);
    if (positives() <= 32) pulled_ = pull(0);
  }

  // Writes the gradient in T, if it is wanted, and returns δ·q̂.
  template <class T>
  __device__ __forceinline__ float run(float tau) {
    float4 direction[kHeld];
    float sum = 0;
#pragma unroll 1
    for (int64_t first = 0; first < a_.dim; first += kHeld * kQuadStep) {
      find_direction(first, direction);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        sum += dot(direction[k], unit_.of(read_quad(row_, column(first, k), a_.dim)));
      }
    }
    const float along = warp_sum(sum);
    const QuadRows& to = at_.global ? a_.grad_global : a_.grad_local;
    if (!to.rows.present()) return along;
    const QuadRow gradient = to.row(at_.image, at_.crop);
    const bool held = a_.dim <= kHeld * kQuadStep;
#pragma unroll 1
    for (int64_t first = 0; first < a_.dim; first += kHeld * kQuadStep) {
      if (!held) find_direction(first, direction);
#pragma unroll
      for (int k = 0; k < kHeld; ++k) {
        const int64_t at = column(first, k);
        const float4 unit = unit_.of(read_quad(row_, at, a_.dim));
        // Over the norm in two steps: its inverse need not be a number of fp32.
        const float4 over_norm = (unit_.inverse / tau) * fma(-along, unit, direction[k]);
        write<T>(gradient, at, unit_.factor * over_norm);
      }
    }
    return along;
  }

 private:
  __device__ __forceinline__ int64_t positives() const { return a_.positives.rows.count; }
  __device__ __forceinline__ static int64_t column(int64_t first, int k) {
    return first + k * kQuadStep + first_quad();
  }

  __device__ __forceinline__ float weight(int64_t p) const {
    const auto number = [&](const Rows& rows) {
      const char* const row = row_address(rows, at_.image, crop_);
      return reinterpret_cast<const float*>(row)[p * rows.element_stride];
    };
    return number(a_.upstream) * number(a_.pull);
  }

  // Of the positives from `first` on, a lane for each.
  __device__ __forceinline__ Pulled pull(int64_t first) const {
    const int lane = threadIdx.x % 32;
    Pulled mine;
#pragma unroll 1
    for (int k = 0; k < 32 && first + k < positives(); ++k) {
      const Unit unit = unit_of(a_.positives.row(at_.image, first + k), a_.dim);
      if (lane == k) mine = {weight(first + k) * unit.inverse, unit.factor};
    }
    return mine;
  }

  // δ of the columns from `first` on.
  __device__ __forceinline__ void find_direction(int64_t first, float4 (&direction)[kHeld]) const {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
      direction[k] = weights_ * read_quad(mean_, column(first, k), a_.dim);
    }
#pragma unroll 1
    for (int64_t base = 0; base < positives(); base += 32) {
      const Pulled pulled = positives() <= 32 ? pulled_ : pull(base);
#pragma unroll 1
      for (int p = 0; p < 32 && base + p < positives(); ++p) {
        const QuadRow row = a_.positives.row(at_.image, base + p);
        const float coefficient = __shfl_sync(kAllLanes, pulled.coefficient, p);
        const float factor = __shfl_sync(kAllLanes, pulled.factor, p);
#pragma unroll
        for (int k = 0; k < kHeld; ++k) {
          const float4 v = factor * read_quad(row, column(first, k), a_.dim);
          direction[k] = fma(-coefficient, v, direction[k]);
        }
      }
    }
  }

  // Saturates, but in fp16, whose inf tells a loss scaler to step back. A zero row has none,
  // whatever it sees.
  template <class T>
  __device__ __forceinline__ void write(const QuadRow& to, int64_t at,
                                        const float4& gradient) const {
    float v[4] = {gradient.x, gradient.y, gradient.z, gradient.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!std::is_same_v<T, f16>) v[k] = clamp_keeping_nan(v[k], float(largest(kDType<T>)));
      if (unit_.inverse == 0) v[k] = 0;
    }
    T* const row = reinterpret_cast<T*>(const_cast<char*>(to.at.address)) + at;
    if (!to.together) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (at + k < a_.dim) from_float(v[k], row + k);
      }
    } else if (at < a_.dim) {
      if constexpr (std::is_same_v<T, float>) {
        *reinterpret_cast<float4*>(row) = make_float4(v[0], v[1], v[2], v[3]);
      } else {
        *reinterpret_cast<uint2*>(row) = make_uint2(pack<T>(v[0], v[1]), pack<T>(v[2], v[3]));
      }
    }
  }

  const BackwardArguments& a_;
  QueryAt at_;
  int64_t crop_;  // among all of the image
  QuadRow row_, mean_;
  Unit unit_;
  float weights_;  // Σ w
  Pulled pulled_;  // of all positives, where these are few
};

// A warp for each query.
template <class T>
__global__ void __launch_bounds__(kThreads)
    info_nce_backward_kernel(const __grid_constant__ BackwardArguments a) {
  __shared__ double found[kWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const float tau = a.tau_at == nullptr ? a.tau : *a.tau_at;
  double along = 0;
#pragma unroll 1
  for (int64_t query = int64_t(blockIdx.x) * kWarps + warp; query < a.queries.count;
       query += int64_t(gridDim.x) * kWarps) {
    const Rows& to = a.queries.at(query).global ? a.grad_global.rows : a.grad_local.rows;
    if (a.grad_tau == nullptr && !to.present()) continue;
    along += double(Backward(a, query).template run<T>(tau));
  }
  if (a.grad_tau == nullptr) return;
  if (lane == 0) found[warp] = along;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int k = 0; k < kWarps; ++k) sum += found[k];
    a.found[blockIdx.x] = sum;
  }
  if (!comes_last(a.finished) || warp != 0) return;
  double sum = 0;
  for (int64_t block = lane; block < gridDim.x; block += 32) sum += __ldcg(a.found + block);
  sum = warp_sum(sum);
  if (lane == 0) *a.grad_tau = float(-sum) / tau / tau;
}

}  // namespace

Status info_nce_backward(const ContrastProblem& p, const Queue& queue, Failure* failure) {
  Limits limits;
  cudaError_t error = enter(queue.device, &limits);
  if (error == cudaSuccess) {
    BackwardArguments a;
    const auto rows = [&](const Rows& of) { return QuadRows(of, p.images, p.dim); };
    a.queries = queries_of(p);
    a.positives = rows(p.positives);
    a.mean = rows(p.mean);
    a.upstream = p.upstream;
    a.pull = p.pull;
    a.grad_global = rows(p.grad_global);
    a.grad_local = rows(p.grad_local);
    a.dim = p.dim;
    a.tau = float(p.temperature);
    a.tau_at = static_cast<const float*>(p.temperature_at);
    a.grad_tau = static_cast<float*>(p.grad_temperature);
    a.finished = static_cast<unsigned*>(queue.workspace);
    a.found = reinterpret_cast<double*>(static_cast<char*>(queue.workspace) + kFoundOffset);
    const int64_t needed = (a.queries.count + kWarps - 1) / kWarps;
    const int64_t most = int64_t(limits.multiprocessors) * kBlocks;
    const DType dtype = dtype_of_queries(p);
    const auto kernel = dtype == DType::f32    ? info_nce_backward_kernel<float>
                        : dtype == DType::bf16 ? info_nce_backward_kernel<bf16>
                                               : info_nce_backward_kernel<f16>;
    const Grid grid{unsigned(needed < most ? needed : most), kThreads, 0,
                    static_cast<cudaStream_t>(queue.stream)};
    error = launch(kernel, grid, a);
  }
  return error == cudaSuccess
             ? Status::ok
             : fail("info_nce_backward", p, queue.device, cudaGetErrorString(error), failure);
}

}  // namespace cuda
}  // namespace logo
