// Cosine LoGo loss and gradient: one pass per image.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include <initializer_list>

#include "cpu/exact.h"
#include "cpu/image.h"
#include "cpu/parallel.h"
#include "cpu/variants.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

// Where the rows of each kind stand: targets first, so that [t | y] lie side by side.
struct Layout {
  int globals, locals;
  bool own_targets, own_features, repulsion;
  int t, y, x, r, rows;

  explicit Layout(const CosineProblem& p)
      : globals(int(p.global.count)),
        locals(int(p.local.count)),
        own_targets(!p.targets.present()),
        own_features(!p.features.present()),
        repulsion(p.repulsion && locals > 1) {
    t = 0;
    y = globals;
    const int after = globals + locals;
    x = own_targets ? t : after;
    r = own_features ? y : after + (own_targets ? 0 : globals);
    rows = after + (own_targets ? 0 : globals) + (own_features ? 0 : locals);
  }

  void plan(DotPlan& plan) const {
    if (own_targets && own_features && repulsion) return plan.triangle(0, rows);
    if (own_targets) {
      plan.triangle(t, globals);
    } else {
      plan.diagonal(t, globals);
      plan.diagonal(x, globals);
      plan.rectangle(x, globals, t, globals);
    }
    plan.rectangle(y, locals, t, globals);
    if (!repulsion || !own_features) plan.diagonal(y, locals);
    if (repulsion) plan.triangle(r, locals);
  }
};

// Coefficients of one kind of row: grad_i = Σ_k weights[i][k] row_{first + k} + own[i] row_i.
template <class T>
struct Sums {
  T* weights;  // [count, width]
  T* own;      // [count], or null where row_i is among the partners
  T* limits;   // [count], or null: only fp16 needs them
  int first, width, own_first;
};

template <class T>
struct Coefficients {
  T* inverse;  // [rows] 1/‖row‖, 0 for a zero row
  Sums<T> x, y, r;
  double gg, lg, ll;  // sums of cosines over ordered gg, lg and ordered ll pairs

  static size_t bytes(const Layout& at) {
    return 3 * Scratch::bytes<T>(at.rows) * 2 + Scratch::bytes<T>(at.rows) +
           Scratch::bytes<T>(at.globals * at.globals) +
           Scratch::bytes<T>(at.locals * (at.globals + at.locals)) +
           Scratch::bytes<T>(at.locals * at.locals);
  }
  void attach(Scratch& scratch, const Layout& at) {
    inverse = scratch.take<T>(at.rows);
    const bool y_has_r = at.own_features && at.repulsion;
    x = {scratch.take<T>(at.globals * at.globals),
         scratch.take<T>(at.rows),
         scratch.take<T>(at.rows),
         at.t,
         at.globals,
         at.x};
    y = {scratch.take<T>(at.locals * (at.globals + at.locals)),
         scratch.take<T>(at.rows),
         scratch.take<T>(at.rows),
         at.t,
         at.globals + (y_has_r ? at.locals : 0),
         at.y};
    r = {scratch.take<T>(at.locals * at.locals),
         scratch.take<T>(at.rows),
         scratch.take<T>(at.rows),
         at.r,
         at.locals,
         at.r};
  }

  // From the inner products to the gradient's coefficients (math.h). `share` is an image's share
  // in the total: 1/B for the mean.
  template <class Dots>
  void compute(const Layout& at, const CosineProblem& p, double share, const Dots& image) {
    const T gg_weight = T(-p.gg_weight * share), lg_weight = T(-p.lg_weight * share),
            ll_weight = T(p.ll_weight * share);
    gg = lg = ll = 0;
    for (int i = 0; i < at.globals; ++i) {
      T own = 0;
      T* const row = x.weights + i * x.width;
      gg += cosine_row(
          image.dots(at.x + i) + at.t, at.globals, i, inverse[at.x + i], inverse + at.t,
          [=](int) { return gg_weight; }, row, &own);
      (at.own_targets ? row[i] : x.own[i]) = own;
    }
    for (int i = 0; i < at.locals; ++i) {
      T own = 0;
      T* const row = y.weights + i * y.width;
      const T* const dots = image.dots(at.y + i);
      const T inverse_y = inverse[at.y + i];
      lg += cosine_row(
          dots + at.t, at.globals, -1, inverse_y, inverse + at.t, [=](int) { return lg_weight; },
          row, &own);
      if (at.own_features && at.repulsion) {
        ll += cosine_row(
            dots + at.y, at.locals, i, inverse_y, inverse + at.y, [=](int) { return ll_weight; },
            row + at.globals, &own);
        row[at.globals + i] = own;
      }
      y.own[i] = own;
    }
    if (at.repulsion && !at.own_features) {
      for (int i = 0; i < at.locals; ++i) {
        T own = 0;
        T* const row = r.weights + i * r.width;
        ll += cosine_row(
            image.dots(at.r + i) + at.r, at.locals, i, inverse[at.r + i], inverse + at.r,
            [=](int) { return ll_weight; }, row, &own);
        row[i] = own;
      }
    }
  }
};

// ‖gradient of a row‖ ≤ (Σ|w|)/‖row‖ bounds its elements; the power of two by which an fp16 row is
// divided puts that bound at 2¹⁴, four times below the end of fp16 (see backends/protocol.py).
int fp16_exponent(double bound) {
  if (!(bound > 0) || bound > 1e300) return 0;
  int exponent;
  frexp(bound < 65504 ? bound : 65504, &exponent);
  return exponent - 14;
}

// per_image [4, B]: total, gg, lg, ll.
void write_terms(const CosineProblem& p, const Layout& at, int64_t image, double gg, double lg,
                 double ll, double* per_image) {
  const double pairs_gg = at.globals * (at.globals - 1.0),
               pairs_lg = double(at.locals) * at.globals,
               pairs_ll = at.locals * (at.locals - 1.0) / 2;
  const double values[4] = {
      -p.gg_weight * gg - p.lg_weight * lg + p.ll_weight * ll / 2,
      pairs_gg > 0 ? -gg / pairs_gg : 0,
      pairs_lg > 0 ? -lg / pairs_lg : 0,
      at.repulsion ? ll / 2 / pairs_ll : 0,
  };
  for (int k = 0; k < 4; ++k) {
    per_image[k * p.images + image] = values[k];
  }
}

// One thread's state for a problem.
template <class T>
class Worker {
 public:
  Worker(const CosineProblem& problem, const Layout& at, const DotPlan& plan, bool streaming,
         double* per_image)
      : p_(problem),
        at_(at),
        per_image_(per_image),
        share_(problem.reduction == Reduction::mean ? 1.0 / double(problem.images) : 1.0),
        image_(problem.dim, at.rows, at.globals + 2 * at.locals, plan),
        exact_(problem.dim, at.rows) {
    image_.set_streaming(streaming);
    // T = double also serves fp64 constants beside narrower crops, whose gradients are narrower.
    always_exact_ = false;
    for (const Rows* gradient : {&p_.grad_global, &p_.grad_local, &p_.grad_features}) {
      writes_ = writes_ || gradient->present();
      if (gradient->present() && (gradient->dtype == DType::f64) != (sizeof(T) == 8)) {
        always_exact_ = true;
      }
    }
  }

  bool reserve() {
    if (!scratch_.reserve(image_.scratch_bytes() + Coefficients<T>::bytes(at_))) return false;
    image_.attach(scratch_);
    fast_.attach(scratch_, at_);
    return true;
  }

  // False when memory is short.
  bool run(int64_t image, bool has_next) {
    if (always_exact_) return run_exact(image);
    image_.clear();
    image_.add(p_.targets.present() ? p_.targets : p_.global, image, has_next);
    if (at_.locals > 0) image_.add(p_.local, image, has_next);
    if (!at_.own_targets) image_.add(p_.global, image, has_next);
    if (!at_.own_features) image_.add(p_.features, image, has_next);
    image_.multiply(has_next && !writes_);
    for (int row = 0; row < at_.rows; ++row) {
      const T squared = image_.squared_norm(row);
      if (!squares_well(squared)) {
        if (squared != 0 || !image_.is_zero(row)) return run_exact(image);
        fast_.inverse[row] = 0;
        continue;
      }
      fast_.inverse[row] = 1 / T(__builtin_sqrt(squared));
    }
    fast_.compute(at_, p_, share_, image_);
    write_terms(p_, at_, image, fast_.gg, fast_.lg, fast_.ll, per_image_);
    add_sums(p_.grad_local, fast_.y, !(at_.own_features && at_.repulsion), at_.globals, image);
    add_sums(p_.grad_global, fast_.x, !at_.own_targets, 0, image);
    add_sums(p_.grad_features, fast_.r, false, at_.globals + at_.locals, image);
    image_.write_sums(has_next);
    return true;
  }

 private:
  // Rows of row_scale: global, local, features. `offset` is the first of this kind.
  float* row_scale(int64_t image, int offset) const {
    if (p_.row_scale == nullptr) return nullptr;
    const int rows = at_.globals + at_.locals * (at_.own_features ? 1 : 2);
    return p_.row_scale + image * rows + offset;
  }

  // Σ|w| over the partners of a row of one kind, told by its offset in row_scale.
  double bound(int kind_offset) const {
    const int g = at_.globals, l = at_.locals;
    double weights;
    if (kind_offset == 0) {
      weights = fabs(p_.gg_weight) * (g - 1);
    } else if (kind_offset == g) {
      weights = fabs(p_.lg_weight) * g +
                (at_.own_features && at_.repulsion ? fabs(p_.ll_weight) * (l - 1) : 0);
    } else {
      weights = fabs(p_.ll_weight) * (l - 1);
    }
    return weights * share_;
  }

  void add_sums(const Rows& gradient, const Sums<T>& sums, bool own, int offset, int64_t image) {
    if (!gradient.present()) return;
    float* const scale = row_scale(image, offset);
    const bool fp16 = gradient.dtype == DType::f16;
    for (int i = 0; scale != nullptr && i < int(gradient.count); ++i) {
      if (!fp16) {
        scale[i] = 1;
        continue;
      }
      const int exponent = fp16_exponent(bound(offset) * fast_.inverse[sums.own_first + i]);
      scale[i] = float(ldexp(1.0, exponent));
      const T factor = T(ldexp(1.0, -exponent));
      for (int k = 0; k < sums.width; ++k) sums.weights[i * sums.width + k] *= factor;
      sums.own[i] *= factor;
      sums.limits[i] = exponent < 0 ? T(65504) : T(65504) * factor;
    }
    image_.add_sums(sums.weights, sums.first, sums.width, own ? sums.own : nullptr, sums.own_first,
                    fp16 ? sums.limits : nullptr, gradient, image);
  }

  bool run_exact(int64_t image) {
    if (!has_exact_) {
      if (!exact_.reserve() || !exact_scratch_.reserve(Coefficients<double>::bytes(at_))) {
        return false;
      }
      slow_.attach(exact_scratch_, at_);
      has_exact_ = true;
    }
    exact_.clear();
    exact_.add(p_.targets.present() ? p_.targets : p_.global, image);
    if (at_.locals > 0) exact_.add(p_.local, image);
    if (!at_.own_targets) exact_.add(p_.global, image);
    if (!at_.own_features) exact_.add(p_.features, image);
    exact_.multiply();
    for (int row = 0; row < at_.rows; ++row) {
      const double squared = exact_.squared_norm(row);
      slow_.inverse[row] = squared == 0 ? 0 : 1 / sqrt(squared);
    }
    slow_.compute(at_, p_, share_, exact_);
    write_terms(p_, at_, image, slow_.gg, slow_.lg, slow_.ll, per_image_);
    write_exact(p_.grad_local, slow_.y, !(at_.own_features && at_.repulsion), at_.globals, image);
    write_exact(p_.grad_global, slow_.x, !at_.own_targets, 0, image);
    write_exact(p_.grad_features, slow_.r, false, at_.globals + at_.locals, image);
    return true;
  }

  void write_exact(const Rows& gradient, const Sums<double>& sums, bool own, int offset,
                   int64_t image) {
    float* const scale = row_scale(image, offset);
    for (int i = 0; i < int(gradient.count); ++i) {
      const int row = sums.own_first + i;
      int shift = exact_.exponent(row);
      double limit = largest(gradient.dtype);
      if (scale != nullptr) scale[i] = 1;
      if (gradient.dtype == DType::f16) {
        const int exponent = fp16_exponent(ldexp(bound(offset) * slow_.inverse[row], shift));
        scale[i] = float(ldexp(1.0, exponent));
        shift -= exponent;
        if (exponent > 0) limit = ldexp(limit, -exponent);
      }
      exact_.sum(sums.weights + i * sums.width, sums.first, sums.width, own ? sums.own[i] : 0.0,
                 row, shift, limit, gradient, image, i);
    }
  }

  const CosineProblem& p_;
  const Layout& at_;
  double* per_image_;
  double share_;
  bool always_exact_, writes_ = false, has_exact_ = false;
  Scratch scratch_, exact_scratch_;
  Image<T> image_;
  ExactImage exact_;
  Coefficients<T> fast_;
  Coefficients<double> slow_;
};

// Totals and terms over images, summed in the order of the images: the same on every run and for
// any number of threads.
template <class T>
void reduce(const CosineProblem& p, const double* per_image) {
  for (int k = 0; k < 4; ++k) {
    const double* const from = per_image + k * p.images;
    const int64_t width = p.reduction == Reduction::none ? p.images : 1;
    T* const to = k == 0 ? static_cast<T*>(p.total) : static_cast<T*>(p.terms) + (k - 1) * width;
    if (p.reduction == Reduction::none) {
      for (int64_t image = 0; image < p.images; ++image) to[image] = T(from[image]);
      continue;
    }
    double sum = 0;
    for (int64_t image = 0; image < p.images; ++image) sum += from[image];
    *to = T(p.reduction == Reduction::mean ? sum / double(p.images) : sum);
  }
}

template <class T>
Status run(const CosineProblem& p) {
  const Layout at(p);
  Scratch scratch;
  const int64_t tiles = DotPlan::capacity(at.rows);
  if (!scratch.reserve(Scratch::bytes<Tile>(tiles) + Scratch::bytes<double>(4 * p.images))) {
    return Status::out_of_memory;
  }
  DotPlan plan(scratch.take<Tile>(tiles));
  double* const per_image = scratch.take<double>(4 * p.images);
  at.plan(plan);
  int64_t written = 0;
  for (const Rows* gradient : {&p.grad_global, &p.grad_local, &p.grad_features}) {
    written += p.images * gradient->count * p.dim * dtype_bytes(gradient->dtype);
  }
  const bool streaming = written > kStreamingBytes;
  const int threads = threads_for(p.images, at.rows * p.dim, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
  {
    Worker<T> worker(p, at, plan, streaming, per_image);
    const bool ready = worker.reserve();
    short_of_memory = !ready;
    const Share share = share_of(p.images);
    for (int64_t image = share.first; ready && image < share.last; ++image) {
      if (!worker.run(image, image + 1 < share.last)) short_of_memory = true;
    }
    streaming_fence(streaming);
  }
  if (short_of_memory) return Status::out_of_memory;
  if (p.fp64) {
    reduce<double>(p, per_image);
  } else {
    reduce<float>(p, per_image);
  }
  return Status::ok;
}

}  // namespace

namespace LOGO_SIMD {

Status cosine(const CosineProblem& p) { return p.fp64 ? run<double>(p) : run<float>(p); }

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
