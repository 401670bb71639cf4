// Cosines between all pairs of rows of an image, and their gradients.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include <initializer_list>

#include "cpu/exact.h"
#include "cpu/image.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "cpu/variants.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

// Rows of an image: a, then b if it is not a itself.
struct Layout {
  int v, w, b, rows;
  bool self;

  explicit Layout(const SimilarityProblem& p) : v(int(p.a.count)), self(!p.b.present()) {
    w = self ? v : int(p.b.count);
    b = self ? 0 : v;
    rows = self ? v : v + w;
  }

  void plan(DotPlan& plan) const {
    if (self) return plan.triangle(0, v);
    plan.diagonal(0, v);
    plan.diagonal(b, w);
    plan.rectangle(b, w, 0, v);
  }
};

double read(const Rows& rows, int64_t image, int64_t crop, int64_t element) {
  const char* const at =
      row_address(rows, image, crop) + element * rows.element_stride * dtype_bytes(rows.dtype);
  switch (rows.dtype) {
    case DType::f32: return *reinterpret_cast<const float*>(at);
    case DType::f64: return *reinterpret_cast<const double*>(at);
    case DType::bf16: return to_float(*reinterpret_cast<const bf16*>(at));
    case DType::f16: return to_float(*reinterpret_cast<const f16*>(at));
  }
  return 0;
}
void write(const Rows& rows, int64_t image, int64_t crop, int64_t element, double value) {
  char* const at = const_cast<char*>(row_address(rows, image, crop)) +
                   element * rows.element_stride * dtype_bytes(rows.dtype);
  switch (rows.dtype) {
    case DType::f32: *reinterpret_cast<float*>(at) = float(value); break;
    case DType::f64: *reinterpret_cast<double*>(at) = value; break;
    case DType::bf16: from_float(float(value), reinterpret_cast<bf16*>(at)); break;
    case DType::f16: from_float(float(value), reinterpret_cast<f16*>(at)); break;
  }
}

// One thread's state. T is the compute type: fp64 for fp64 tensors, else fp32.
template <class T>
class Worker {
 public:
  Worker(const SimilarityProblem& problem, const Layout& at, const DotPlan& plan, bool streaming)
      : p_(problem),
        at_(at),
        plan_(plan),
        image_(problem.dim, at.rows, 0, at.rows, plan.accumulators(), false),
        exact_(problem.dim, at.rows) {
    image_.set_streaming(streaming);
  }

  bool reserve() {
    if (!scratch_.reserve(image_.scratch_bytes() + coefficient_bytes<T>())) return false;
    image_.attach(scratch_);
    fast_.attach(scratch_, at_);
    return true;
  }

  bool run(int64_t image, bool has_next, bool backward) {
    image_.clear();
    image_.add(p_.a, image, has_next);
    if (!at_.self) image_.add(p_.b, image, has_next);
    image_.find_dots(plan_, has_next && !backward);
    for (int row = 0; row < at_.rows; ++row) {
      const T squared = image_.squared_norm(row);
      if (!squares_well(squared)) {
        if (squared != 0 || !image_.is_zero(row)) return run_exact(image, backward);
        fast_.inverse[row] = 0;
        continue;
      }
      fast_.inverse[row] = 1 / T(__builtin_sqrt(squared));
    }
    if (!backward) {
      write_cosines(image_, fast_.inverse, image);
      return true;
    }
    // An upstream gradient can be of any size: fp16 results saturate, the others have the range.
    const bool saturates = p_.a.dtype == DType::f16;
    for (int k = 0; k < at_.rows; ++k) fast_.limits[k] = T(largest(p_.a.dtype));
    const T* const limits = saturates ? fast_.limits : nullptr;
    if (p_.grad_a.present()) {
      fast_.compute(at_, p_, image, image_, true);
      image_.add_sums(fast_.weights, at_.b, at_.w, at_.self ? nullptr : fast_.own, 0, nullptr, 0,
                      limits, p_.grad_a, image);
    }
    if (p_.grad_b.present()) {
      fast_.compute(at_, p_, image, image_, false);
      image_.add_sums(fast_.weights, 0, at_.v, fast_.own + at_.v, at_.b, nullptr, 0, limits,
                      p_.grad_b, image);
    }
    image_.write_sums(has_next);
    return true;
  }

 private:
  template <class C>
  struct Coefficients {
    C *inverse, *weights, *own, *limits, *upstream;

    void attach(Scratch& scratch, const Layout& at) {
      inverse = scratch.take<C>(at.rows);
      weights = scratch.take<C>(at.v * at.w);
      own = scratch.take<C>(at.rows);
      limits = scratch.take<C>(at.rows);
      upstream = scratch.take<C>(at.rows);
    }

    // Coefficients of the gradient to a (to_a) or to b: d/dx Σ_j u_j cos(x, t_j), math.h.
    template <class Dots>
    void compute(const Layout& at, const SimilarityProblem& p, int64_t image, const Dots& dots,
                 bool to_a) {
      const int count = to_a ? at.v : at.w, partners = to_a ? at.w : at.v;
      const int first = to_a ? 0 : at.b, other = to_a ? at.b : 0;
      for (int i = 0; i < count; ++i) {
        for (int j = 0; j < partners; ++j) {
          double u = to_a ? read(p.grad, image, i, j) : read(p.grad, image, j, i);
          if (at.self) u += read(p.grad, image, j, i);  // a_i is partner in both roles
          upstream[j] = C(u);
        }
        C sum = 0;
        C* const row = weights + i * partners;
        cosine_row(
            dots.dots(first + i) + other, partners, at.self ? i : -1, inverse[first + i],
            inverse + other, [this](int j) { return upstream[j]; }, row, &sum);
        (at.self ? row[i] : own[first + i]) = sum;
      }
    }
  };

  template <class C>
  size_t coefficient_bytes() const {
    return 4 * Scratch::bytes<C>(at_.rows) + Scratch::bytes<C>(at_.v * at_.w);
  }

  template <class Dots, class C>
  void write_cosines(const Dots& dots, const C* inverse, int64_t image) {
    for (int i = 0; i < at_.v; ++i) {
      const C* const row = dots.dots(i) + at_.b;
      for (int j = 0; j < at_.w; ++j) {
        write(p_.cosines, image, i, j, row[j] * (inverse[i] * inverse[at_.b + j]));
      }
    }
  }

  bool run_exact(int64_t image, bool backward) {
    if (!has_exact_) {
      if (!exact_.reserve() || !exact_scratch_.reserve(coefficient_bytes<double>())) return false;
      slow_.attach(exact_scratch_, at_);
      has_exact_ = true;
    }
    exact_.clear();
    exact_.add(p_.a, image);
    if (!at_.self) exact_.add(p_.b, image);
    exact_.find_dots();
    for (int row = 0; row < at_.rows; ++row) {
      const double squared = exact_.squared_norm(row);
      slow_.inverse[row] = squared == 0 ? 0 : 1 / sqrt(squared);
    }
    if (!backward) {
      write_cosines(exact_, slow_.inverse, image);
      return true;
    }
    for (const bool to_a : {true, false}) {
      const Rows& gradient = to_a ? p_.grad_a : p_.grad_b;
      if (!gradient.present()) continue;
      slow_.compute(at_, p_, image, exact_, to_a);
      const int count = to_a ? at_.v : at_.w, partners = to_a ? at_.w : at_.v;
      const int first = to_a ? 0 : at_.b, other = to_a ? at_.b : 0;
      for (int i = 0; i < count; ++i) {
        exact_.sum(slow_.weights + i * partners, other, partners,
                   at_.self ? 0 : slow_.own[first + i], first + i, exact_.exponent(first + i),
                   largest(gradient.dtype), gradient, image, i);
      }
    }
    return true;
  }

  const SimilarityProblem& p_;
  const Layout& at_;
  const DotPlan& plan_;
  bool has_exact_ = false;
  Scratch scratch_, exact_scratch_;
  Image<T> image_;
  ExactImage exact_;
  Coefficients<T> fast_;
  Coefficients<double> slow_;
};

template <class T>
Status run(const SimilarityProblem& p, bool backward) {
  const Layout at(p);
  Scratch tiles;
  if (!tiles.reserve(Scratch::bytes<Tile>(DotPlan::capacity(at.rows)))) {
    return Status::out_of_memory;
  }
  DotPlan plan(tiles.take<Tile>(DotPlan::capacity(at.rows)));
  at.plan(plan);
  const int64_t written =
      p.images * (p.grad_a.count + p.grad_b.count) * p.dim * dtype_bytes(p.a.dtype);
  const bool streaming = written > kStreamingBytes;
  const int threads = threads_for(p.images, at.rows * p.dim, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
  {
    const WithSubnormals mode;
    Worker<T> worker(p, at, plan, streaming);
    const bool ready = worker.reserve();
    short_of_memory = !ready;
    const Share share = share_of(p.images);
    for (int64_t image = share.first; ready && image < share.last; ++image) {
      if (!worker.run(image, image + 1 < share.last, backward)) short_of_memory = true;
    }
    streaming_fence(streaming);
  }
  return short_of_memory ? Status::out_of_memory : Status::ok;
}

Status run(const SimilarityProblem& p, bool backward) {
  return p.a.dtype == DType::f64 ? run<double>(p, backward) : run<float>(p, backward);
}

}  // namespace

namespace LOGO_SIMD {

Status similarity(const SimilarityProblem& p) { return run(p, false); }
Status similarity_backward(const SimilarityProblem& p) { return run(p, true); }

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
