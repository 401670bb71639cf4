// Pairs of crops before the second product of the learned affinity; problem.h has the arrays.
//
// The arrays of pairs, [P, H], are read or written once. An image's rows of a and c stay in cache.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include "cpu/column_sums.h"
#include "cpu/columns.h"
#include "cpu/variants.h"
#include "logo/batch_norm.h"

namespace logo {
namespace cpu {
namespace {

// S is the dtype of a and c.
template <class S>
class Hidden {
  using T = Compute<S>;
  using V = Vector<T>;

 public:
  explicit Hidden(const AffinityHiddenProblem& p)
      : p_(p),
        width_(p.width),
        crops_(p.crops),
        mean_(static_cast<const T*>(p.norm)),
        scale_(mean_ + width_),
        bias_(scale_ + width_) {}

  // With ā, c̄ the means over the crops of an image, a'' = a − ā, c'' = c − c̄ and m = ā + c̄ − shift,
  //   Σ_{i≠j} (a_i + c_j − shift)² = L (L − 1) m² + (L − 2) Σ (a''² + c''²) + Σ (a''_i − c''_i)²,
  // sums without cancellation over L rows instead of L (L − 1).
  Status moments() const {
    if (is_constant(p_)) {
      write_constants<T>(p_);
      return Status::ok;
    }
    Scratch scratch, shifts;
    if (!shifts.reserve(Scratch::bytes<T>(width_))) return Status::out_of_memory;
    T* const shift = shifts.take<T>(width_);
    sample(shift);
    double* sums;
    const auto add = [&](int64_t first, int64_t last, ColumnSums<T>& near, double* chunk) {
      for (int64_t image = first; image < last; ++image) {
        add_moments(image, shift, near.first(), near.second());
        near.added(crops_, chunk);
      }
    };
    const Status status =
        sum_columns<T>(p_.images, 2 * crops_, width_, p_.threads, scratch, &sums, add);
    if (status != Status::ok) return status;
    const double pairs = double(crops_ * (crops_ - 1));
    for (int64_t k = 0; k < width_; ++k) sums[k] *= pairs;
    write_moments(p_, sums, shift);
    return Status::ok;
  }

  Status forward() const {
    S* const x = static_cast<S*>(p_.x);
    const bool streaming = streams<S>(x, p_.all_pairs(), width_);
    each_image(crops_ * (crops_ - 1), [&](int64_t image) {
      const S* const c = row(p_.c, partner(image), 0);
      S* to = x + image * crops_ * (crops_ - 1) * width_;
      for (int64_t i = 0; i < crops_; ++i) {
        const S* const a = row(p_.a, image, i);
        const auto rows = [&](int64_t j, auto count) {
          write_rows<count.value>(a, c + j * width_, to, streaming);
          to += count.value * width_;
        };
        for_others(i, rows);
      }
    });
    return Status::ok;
  }

  Status sums() const {
    Scratch scratch;
    double* sums;
    const auto add = [&](int64_t first, int64_t last, ColumnSums<T>& near, double* chunk) {
      for (int64_t image = first; image < last; ++image) add_image(image, near, chunk);
    };
    const Status status =
        sum_columns<T>(p_.images, crops_ * (crops_ - 1), width_, p_.threads, scratch, &sums, add);
    if (status != Status::ok) return status;
    write_sums<T>(p_, sums);
    return Status::ok;
  }

  Status backward() const {
    each_image(3 * crops_, [&](int64_t image) {
      const int64_t other = partner(image);
      const S *const a = row(p_.a, image, 0), *const c = row(p_.c, other, 0);
      gradient(a, c, static_cast<const T*>(p_.to_a) + at(image, 0),
               static_cast<S*>(p_.grad_a) + at(image, 0));
      gradient(c, a, static_cast<const T*>(p_.to_c) + at(other, 0),
               static_cast<S*>(p_.grad_c) + at(other, 0));
    });
    return Status::ok;
  }

 private:
  int64_t at(int64_t image, int64_t crop) const { return (image * crops_ + crop) * width_; }
  const S* row(const void* rows, int64_t image, int64_t crop) const {
    return static_cast<const S*>(rows) + at(image, crop);
  }
  // The image whose c meets this one's a.
  int64_t partner(int64_t image) const {
    const int64_t other = image + p_.roll;
    return other < p_.images ? other : other - p_.images;
  }

  template <class Each>
  void each_image(int64_t rows, const Each& each) const {
    const int threads = threads_for(p_.images, rows * width_, p_.threads);
#pragma omp parallel num_threads(threads)
    {
      const Share share = share_of(p_.images);
      for (int64_t image = share.first; image < share.last; ++image) each(image);
      streaming_fence(true);
    }
  }

  // each(j, Count) over runs of crops j ≠ i.
  template <class Each>
  void for_others(int64_t i, const Each& each) const {
    for_rows(i, each);
    for_rows(crops_ - 1 - i, [&](int64_t j, auto count) { each(i + 1 + j, count); });
  }

  template <int N>
  void write_rows(const S* a, const S* c, S* to, bool streaming) const {
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V left = at.load(a + k), mean = at.load(mean_ + k), scale = at.load(scale_ + k),
              bias = at.load(bias_ + k);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V n = ((left + at.load(c + r * width_ + k)) - mean) * scale + bias;
        at.store(n <= 0 ? V{} : n, to + r * width_ + k, streaming);  // NaN stays
      }
    });
  }

  // Σ m to the rows of a and c, and the sums of both kinds to `near`.
  void add_image(int64_t image, ColumnSums<T>& near, double* chunk) const {
    const int64_t other = partner(image);
    const S* const c = row(p_.c, other, 0);
    T* const to_c = static_cast<T*>(p_.to_c) + at(other, 0);
    const S* grad = static_cast<const S*>(p_.grad_x) + at(image, 0) * (crops_ - 1);
    memset(to_c, 0, size_t(crops_ * width_) * sizeof(T));
    for (int64_t i = 0; i < crops_; ++i) {
      T* const to_a = static_cast<T*>(p_.to_a) + at(image, i);
      memset(to_a, 0, size_t(width_) * sizeof(T));
      for_others(i, [&](int64_t j, auto count) {
        add_rows<count.value>(grad, row(p_.a, image, i), c + j * width_, to_a, to_c + j * width_,
                              near.second());
        grad += count.value * width_;
      });
      T* const sum = near.first();
      for_columns<T>(width_, [&](int64_t k, auto at) {
        at.store(at.load(sum + k) + at.load(to_a + k), sum + k);
      });
      near.added(crops_ - 1, chunk);
    }
  }

  template <int N>
  void add_rows(const S* grad, const S* a, const S* c, T* to_a, T* to_c, T* sum) const {
    // Copies: the stores below could reach the members, which would then be read again after each.
    // The rows of grad come from memory, and the processor does not look far enough ahead itself.
    const int64_t width = width_;
    const T *const means = mean_, *const scales = scale_, *const biases = bias_;
    for_columns<T>(width, [=](int64_t k, auto at) {
      const V left = at.load(a + k), mean = at.load(means + k), scale = at.load(scales + k),
              bias = at.load(biases + k);
      V of_a = at.load(to_a + k), product = at.load(sum + k), of_c[N];
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        __builtin_prefetch(grad + (r + 2 * kAtOnce) * width + k);
        const V off = (left + at.load(c + r * width + k)) - mean;
        const V m = off * scale + bias > 0 ? at.load(grad + r * width + k) : V{};
        of_a += m;
        product += m * off;
        of_c[r] = at.load(to_c + r * width + k) + m;
      }
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) at.store(of_c[r], to_c + r * width + k);
      at.store(of_a, to_a + k);
      at.store(product, sum + k);
    });
  }

  // Gradient of an image's rows of a, or of c: these rows, those that they meet, and Σ m of theirs.
  void gradient(const S* rows, const S* met, const T* sums, S* to) const {
    const T *const first = static_cast<const T*>(p_.correction), *const second = first + width_;
    const T others = T(crops_ - 1);
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V mean = at.load(mean_ + k), scale = at.load(scale_ + k), one = at.load(first + k),
              two = at.load(second + k);
      // Distances from the first row, so that nothing large cancels.
      const V from = at.load(met + k);
      V all{};
      for (int64_t j = 1; j < crops_; ++j) all += at.load(met + j * width_ + k) - from;
      for (int64_t i = 0; i < crops_; ++i) {
        const V off = others * ((at.load(rows + i * width_ + k) + from) - mean) +
                      (all - (at.load(met + i * width_ + k) - from));
        at.store(scale * ((at.load(sums + i * width_ + k) - others * one) - two * off),
                 to + i * width_ + k);
      }
    });
  }

  // A number near the mean of h: the mean of some images' means.
  void sample(T* shift) const {
    constexpr int64_t kImages = 16;
    const int64_t images = p_.images < kImages ? p_.images : kImages;
    memset(shift, 0, size_t(width_) * sizeof(T));
    for (int64_t k = 0; k < images; ++k) {
      const int64_t image = p_.images * k / images;
      const S *const a = row(p_.a, image, 0), *const c = row(p_.c, image, 0);
      for_columns<T>(width_, [&](int64_t k, auto at) {
        const V h = at.load(a + k) + at.load(c + k);
        at.store(at.load(shift + k) + h / T(images), shift + k);
      });
    }
  }

  void add_moments(int64_t image, const T* shift, T* first, T* second) const {
    const S *const a = row(p_.a, image, 0), *const c = row(p_.c, partner(image), 0);
    const T share = T(1) / T(crops_), pairs = T(crops_ * (crops_ - 1)), rest = T(crops_ - 2);
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V from_a = at.load(a + k), from_c = at.load(c + k);
      V mean_a{}, mean_c{};
      for (int64_t i = 1; i < crops_; ++i) {
        mean_a += at.load(a + i * width_ + k) - from_a;
        mean_c += at.load(c + i * width_ + k) - from_c;
      }
      mean_a = mean_a * share + from_a;
      mean_c = mean_c * share + from_c;
      V squares{}, differences{};
      for (int64_t i = 0; i < crops_; ++i) {
        const V da = at.load(a + i * width_ + k) - mean_a,
                dc = at.load(c + i * width_ + k) - mean_c;
        squares += da * da + dc * dc;
        differences += (da - dc) * (da - dc);
      }
      const V m = (mean_a + mean_c) - at.load(shift + k);
      at.store(at.load(first + k) + m, first + k);
      at.store(at.load(second + k) + (pairs * m * m + rest * squares + differences), second + k);
    });
  }

  const AffinityHiddenProblem& p_;
  int64_t width_, crops_;
  const T *mean_, *scale_, *bias_;
};

}  // namespace

namespace LOGO_SIMD {

Status affinity_hidden_moments(const AffinityHiddenProblem& p) {
  return by_dtype<Hidden>(p, [](const auto& hidden) { return hidden.moments(); });
}
Status affinity_hidden(const AffinityHiddenProblem& p) {
  return by_dtype<Hidden>(p, [](const auto& hidden) { return hidden.forward(); });
}
Status affinity_hidden_sums(const AffinityHiddenProblem& p) {
  return by_dtype<Hidden>(p, [](const auto& hidden) { return hidden.sums(); });
}
Status affinity_hidden_backward(const AffinityHiddenProblem& p) {
  return by_dtype<Hidden>(p, [](const auto& hidden) { return hidden.backward(); });
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
