// InfoNCE's backward in one launch: gradients of the queries and of the temperature.
//
// With w = upstream · pull of a pair, O the mean of the negatives and δ = Σ w (O − k̂⁺) over a
// query's pairs, the query's gradient is (δ − (δ·q̂) q̂)/(τ‖q‖), and τ's is −Σ δ·q̂ / τ².
#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/info_nce_rows.cuh"
#include "cuda/info_nce_temperature.cuh"
#include "cuda/output.cuh"
#include "cuda/ticket.cuh"

namespace logo {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 8;  // of a multiprocessor; they walk over the rest of the queries
// Words of a row that a lane holds at once.
constexpr int kWords = 4;

struct BackwardArguments : OfQueries {
  Scaled tau;      // p.temperature
  BlockSums sums;  // over queries, of δ·q̂

  BackwardArguments(const InfoNCEProblem& problem, void* workspace)
      : OfQueries(problem), tau(p.temperature), sums(workspace) {}

  __device__ __forceinline__ Scaled temperature() const {
    return p.temperature_tensor == nullptr ? tau : Scaled(temperature_in_memory());
  }
};

// One of 32 positives, a lane for each: w k̂ = coefficient · (factor · k).
struct Pulled {
  float coefficient = 0, factor = 1;
};

// One query's gradient, by all lanes of a warp.
template <int N>
class Backward {
 public:
  __device__ __forceinline__ Backward(const BackwardArguments& arguments, int64_t query)
      : a_(arguments),
        at_(a_.at(query)),
        crop_(at_.crop + (at_.global ? 0 : a_.p.global_crops.count)),
        row_(a_.row(at_)),
        mean_(a_.p.mean, at_.image, crop_) {
    float sum = 0;
    for (int64_t p = threadIdx.x % 32; p < a_.p.positives.count; p += 32) sum += weight(p);
    weights_ = warp_sum(sum);
  }

  // Writes the gradient in T, if it is wanted, and returns δ·q̂; so does `walked`. For no more
  // columns than lanes hold: every row is read once.
  template <class T>
  __device__ __forceinline__ float held() const {
    // Words leave no registers for a look at the upstream gradients beforehand, and single numbers
    // none for a look on the way: ptxas would spill.
    constexpr bool kInWords = N > 1;
    bool saturating = kInWords || saturates<T>();
    Word<N> query[kWords], direction[kWords], row[kWords];
    load(row_, 0, query);
    load(mean_, 0, direction);
    const Unit unit = unit_of_words(query, row_.dtype);
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      query[k] = unit.of(query[k]);
      direction[k] = weights_ * direction[k];
    }
#pragma unroll 1
    for (int64_t p = 0; p < a_.p.positives.count; ++p) {
      load(positive(p), 0, row);
      const Unit other = unit_of_words(row, a_.p.positives.dtype);
      pull(direction, weight(p) * other.inverse, other.factor, row);
      if (kInWords) saturating &= !scaled<T>(p);
    }
    const float along = warp_sum(dot_of_words(direction, query));
    write_gradient<T>(0, direction, query, along, unit, saturating);
    return along;
  }

  // For any number of columns: rows are read for their norms, for δ·q̂, and for the gradient.
  template <class T>
  __device__ __forceinline__ float walked() const {
    constexpr int64_t kStep = kWords * kColumnStep<N>;
    Word<N> query[kWords], direction[kWords];
    const Unit unit = unit_of<N>(row_, a_.p.dim);
    const auto load_query = [&](int64_t first) {
      load(row_, first, query);
#pragma unroll
      for (int k = 0; k < kWords; ++k) query[k] = unit.of(query[k]);
    };
    const Pulled some = few() ? pulled(0) : Pulled();
    float sum = 0;
#pragma unroll 1
    for (int64_t first = 0; first < a_.p.dim; first += kStep) {
      find_direction(first, some, direction);
      load_query(first);
      sum += dot_of_words(direction, query);
    }
    const float along = warp_sum(sum);
    const bool saturating = saturates<T>();
#pragma unroll 1
    for (int64_t first = 0; first < a_.p.dim && wanted().present(); first += kStep) {
      find_direction(first, some, direction);
      load_query(first);
      write_gradient<T>(first, direction, query, along, unit, saturating);
    }
    return along;
  }

 private:
  __device__ __forceinline__ const Rows& wanted() const {
    return at_.global ? a_.p.grad_global : a_.p.grad_local;
  }
  __device__ __forceinline__ bool few() const { return a_.p.positives.count <= 32; }
  __device__ __forceinline__ CropRow positive(int64_t p) const {
    return {a_.p.positives, at_.image, p};
  }
  __device__ __forceinline__ float of_pair(const Rows& rows, int64_t p) const {
    const char* const row = row_address(rows, at_.image, crop_);
    return reinterpret_cast<const float*>(row)[p * rows.element_stride];
  }
  __device__ __forceinline__ float weight(int64_t p) const {
    return of_pair(a_.p.upstream, p) * of_pair(a_.p.pull, p);
  }

  // A lane's words from column `first` on.
  __device__ __forceinline__ void load(const CropRow& row, int64_t first,
                                       Word<N> (&words)[kWords]) const {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      words[k] = read<N>(row, first + k * kColumnStep<N> + first_column<N>(), a_.p.dim);
    }
  }
  static __device__ __forceinline__ void pull(Word<N> (&direction)[kWords], float coefficient,
                                              float factor, const Word<N> (&row)[kWords]) {
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      direction[k] = fma(-coefficient, factor * row[k], direction[k]);
    }
  }

  // The positives from `first` on, a lane for each.
  __device__ __forceinline__ Pulled pulled(int64_t first) const {
    const int lane = threadIdx.x % 32;
    Pulled mine;
#pragma unroll 1
    for (int k = 0; k < 32 && first + k < a_.p.positives.count; ++k) {
      const Unit unit = unit_of<N>(positive(first + k), a_.p.dim);
      if (lane == k) mine = {weight(first + k) * unit.inverse, unit.factor};
    }
    return mine;
  }

  // δ of the columns from `first` on; `some` is of all positives where these are few.
  __device__ __forceinline__ void find_direction(int64_t first, const Pulled& some,
                                                 Word<N> (&direction)[kWords]) const {
    load(mean_, first, direction);
#pragma unroll
    for (int k = 0; k < kWords; ++k) direction[k] = weights_ * direction[k];
#pragma unroll 1
    for (int64_t base = 0; base < a_.p.positives.count; base += 32) {
      const Pulled these = few() ? some : pulled(base);
#pragma unroll 1
      for (int p = 0; p < 32 && base + p < a_.p.positives.count; ++p) {
        Word<N> row[kWords];
        load(positive(base + p), first, row);
        pull(direction, __shfl_sync(kAllLanes, these.coefficient, p),
             __shfl_sync(kAllLanes, these.factor, p), row);
      }
    }
  }

  // Whether a loss scaler may have multiplied the gradient of a pair. An fp16 that it makes too
  // large becomes inf, which tells it to step back; all other gradients saturate.
  template <class T>
  __device__ __forceinline__ bool scaled(int64_t p) const {
    return std::is_same_v<T, f16> && fabsf(of_pair(a_.p.upstream, p)) > 1;
  }
  // By all lanes of a warp.
  template <class T>
  __device__ __forceinline__ bool saturates() const {
    if (!std::is_same_v<T, f16>) return true;
    bool any = false;
#pragma unroll 1
    for (int64_t p = threadIdx.x % 32; p < a_.p.positives.count; p += 32) any |= scaled<T>(p);
    return !__any_sync(kAllLanes, any);
  }

  // A zero row's gradient is zero, whatever the row sees.
  template <class T>
  __device__ __forceinline__ void write_gradient(int64_t first, const Word<N> (&direction)[kWords],
                                                 const Word<N> (&query)[kWords], float along,
                                                 const Unit& unit, bool saturating) const {
    if (!wanted().present()) return;
    T* const to =
        reinterpret_cast<T*>(const_cast<char*>(row_address(wanted(), at_.image, at_.crop)));
    const float most = saturating ? float(largest(kDType<T>)) : INFINITY;
    // τ is read where it is used: before, it would take registers from the row.
    const Over over(unit.factor, unit.inverse, a_.temperature());
#pragma unroll
    for (int k = 0; k < kWords; ++k) {
      const int64_t column = first + k * kColumnStep<N> + first_column<N>();
      if (column >= a_.p.dim) continue;
      Word<N> w = over.second * (over.first * fma(-along, query[k], direction[k]));
#pragma unroll
      for (int i = 0; i < N; ++i) {
        w.v[i] = clamp_keeping_nan(w.v[i], most);
        if (unit.inverse == 0) w.v[i] = 0;
      }
      write(w, to + column);
    }
  }

  const BackwardArguments& a_;
  QueryAt at_;
  int64_t crop_;  // among all of the image
  CropRow row_, mean_;
  float weights_;  // Σ w
};

// A warp for each query. HELD: no more columns than lanes hold.
template <class T, int N, bool HELD>
__global__ void __launch_bounds__(kThreads, HELD ? 3 : 2)
    info_nce_backward_kernel(const __grid_constant__ BackwardArguments a) {
  __shared__ double found[kWarps];
  __shared__ unsigned flag;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double along = 0;
#pragma unroll 1
  for (int64_t query = int64_t(blockIdx.x) * kWarps + warp; query < a.count;
       query += int64_t(gridDim.x) * kWarps) {
    const Rows& to = a.at(query).global ? a.p.grad_global : a.p.grad_local;
    if (a.p.grad_temperature == nullptr && !to.present()) continue;
    const Backward<N> backward(a, query);
    along += double(HELD ? backward.template held<T>() : backward.template walked<T>());
  }
  if (a.p.grad_temperature == nullptr) return;
  if (lane == 0) found[warp] = along;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int k = 0; k < kWarps; ++k) sum += found[k];
    *a.sums.of(blockIdx.x) = sum;
  }
  if (!comes_last(a.sums.finished, &flag) || warp != 0) return;
  double sum = 0;
  for (int64_t block = lane; block < gridDim.x; block += 32) sum += __ldcg(a.sums.of(block));
  sum = warp_sum(sum);
  if (lane != 0) return;
  const Scaled tau = a.temperature();
  const double value = ldexp(-sum / tau.mantissa / tau.mantissa, -2 * tau.power);
  *static_cast<float*>(a.p.grad_temperature) = finite(float(value));
}

bool all_in_quads(const InfoNCEProblem& p) {
  for (const Rows* rows :
       {&p.global_crops, &p.local_crops, &p.positives, &p.mean, &p.grad_global, &p.grad_local}) {
    if (!in_quads(*rows, p.images, p.dim)) return false;
  }
  return true;
}

template <class T>
auto kernel_for(bool quads, int64_t dim) {
  const bool held = dim <= kWords * (quads ? kColumnStep<4> : kColumnStep<1>);
  if (quads) {
    return held ? info_nce_backward_kernel<T, 4, true> : info_nce_backward_kernel<T, 4, false>;
  }
  return held ? info_nce_backward_kernel<T, 1, true> : info_nce_backward_kernel<T, 1, false>;
}

}  // namespace

Status info_nce_backward(const InfoNCEProblem& p, const Queue& queue, Failure* failure) {
  Limits limits;
  cudaError_t error = enter(queue.device, &limits);
  if (error == cudaSuccess) {
    const BackwardArguments a(p, queue.workspace);
    const int64_t needed = (a.count + kWarps - 1) / kWarps;
    const int64_t most = int64_t(limits.multiprocessors) * kBlocks;
    const DType dtype = p.query_dtype();
    const bool quads = all_in_quads(p);
    const auto kernel = dtype == DType::f32    ? kernel_for<float>(quads, p.dim)
                        : dtype == DType::bf16 ? kernel_for<bf16>(quads, p.dim)
                                               : kernel_for<f16>(quads, p.dim);
    const Grid grid{unsigned(needed < most ? needed : most), kThreads, 0,
                    static_cast<cudaStream_t>(queue.stream)};
    error = launch(kernel, grid, a);
  }
  if (error == cudaSuccess) return Status::ok;
  char shape[160];
  snprintf(shape, sizeof(shape), "N=%lld P=%lld D=%lld %s", static_cast<long long>(p.queries()),
           static_cast<long long>(p.positives.count), static_cast<long long>(p.dim),
           name_of(p.query_dtype()));
  return fail(failure, "info_nce_backward", shape, queue.device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
