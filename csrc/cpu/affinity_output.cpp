// Pairs of crops after the second product of the learned affinity; problem.h has the arrays.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include "cpu/column_sums.h"
#include "cpu/columns.h"
#include "cpu/link.h"
#include "cpu/subnormals.h"
#include "cpu/variants.h"
#include "logo/batch_norm.h"

namespace logo {
namespace cpu {
namespace {

// S is the dtype of y.
template <class S>
class Output {
  using T = Compute<S>;
  using V = Vector<T>;

 public:
  explicit Output(const AffinityOutputProblem& p)
      : p_(p),
        width_(p.width),
        rows_(p.images * p.pairs),
        y_(static_cast<const S*>(p.y)),
        mean_(static_cast<const T*>(p.norm)),
        scale_(mean_ + width_),
        bias_(scale_ + width_),
        weight_(static_cast<const T*>(p.last)),
        slope_(static_cast<T*>(p.slope)) {}

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
      for_rows(last - first, [&](int64_t row, auto count) {
        add_moments<count.value>(y_ + (first + row) * width_, shift, near.first(), near.second());
        near.added(count.value, chunk);
      });
    };
    const Status status = sum_columns<T>(rows_, 1, width_, p_.threads, scratch, &sums, add);
    if (status != Status::ok) return status;
    write_moments(p_, sums, shift);
    return Status::ok;
  }

  // A block of rows at a time: first f of each, in the place of its slope, then the links.
  Status forward() const {
    constexpr int64_t kBlock = 256;
    const int64_t together = p_.pairs < kBlock ? kBlock / p_.pairs : 1;  // images of a block
    const int64_t blocks = (p_.images + together - 1) / together;
    const int threads = threads_for(blocks, together * p_.pairs * width_, p_.threads);
    bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
    {
      const WithSubnormals mode;
      Scratch scratch;
      short_of_memory = !scratch.reserve(Scratch::bytes<T>(together * p_.pairs));
      const Share share = share_of(blocks);
      if (!short_of_memory) {
        T* const linked = scratch.take<T>(together * p_.pairs);
        for (int64_t block = share.first; block < share.last; ++block) {
          const int64_t first = block * together;
          const int64_t last = first + together < p_.images ? first + together : p_.images;
          write_images(first, last, linked);
        }
      }
    }
    return short_of_memory ? Status::out_of_memory : Status::ok;
  }

  Status sums() const {
    Scratch scratch;
    double* sums;
    const auto add = [&](int64_t first, int64_t last, ColumnSums<T>& near, double* chunk) {
      for_rows(last - first, [&](int64_t row, auto count) {
        add_rows<count.value>(first + row, near.first(), near.second());
        near.added(count.value, chunk);
      });
    };
    const Status status = sum_columns<T>(rows_, 1, width_, p_.threads, scratch, &sums, add);
    if (status != Status::ok) return status;
    write_sums<T>(p_, sums);
    return Status::ok;
  }

  Status backward() const {
    const bool streaming = streams<S>(p_.grad_y, rows_, width_);
    const int threads = threads_for(rows_, width_, p_.threads);
#pragma omp parallel num_threads(threads)
    {
      const WithSubnormals mode;
      const Share share = share_of(rows_);
      for_rows(share.last - share.first, [&](int64_t row, auto count) {
        write_gradient<count.value>(share.first + row, streaming);
      });
      streaming_fence(streaming);
    }
    return Status::ok;
  }

 private:
  // t of a pair, the gradient that arrives at its f.
  T pull(int64_t row) const {
    return static_cast<const T*>(p_.grad)[row / p_.pairs * p_.grad_stride] * slope_[row];
  }

  template <int N>
  void write_affinity(int64_t row) const {
    const S* const y = y_ + row * width_;
    V sums[kAtOnce] = {};
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V mean = at.load(mean_ + k), scale = at.load(scale_ + k), bias = at.load(bias_ + k),
              weight = at.load(weight_ + k);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V n = (at.load(y + r * width_ + k) - mean) * scale + bias;
        sums[r] += weight * (n <= 0 ? V{} : n);  // NaN stays
      }
    });
    T f[kAtOnce];
    sum4(sums, f);
    const T last = *static_cast<const T*>(p_.last_bias);
    for (int r = 0; r < N; ++r) slope_[row + r] = f[r] + last;
  }

  void write_images(int64_t first, int64_t last, T* linked) const {
    const int64_t rows = (last - first) * p_.pairs;
    T* const slope = slope_ + first * p_.pairs;
    for_rows(rows,
             [&](int64_t row, auto count) { write_affinity<count.value>(first * p_.pairs + row); });
    const T share = T(1) / T(p_.pairs);
    for_columns<T>(rows, [&](int64_t k, auto at) {
      const Linked<T> of = link<T>(p_.link, at.load(slope + k));
      at.store(of.value, linked + k);
      at.store(of.slope * share, slope + k);
    });
    for (int64_t image = first; image < last; ++image) {
      double sum = 0;
      for (int64_t pair = 0; pair < p_.pairs; ++pair) sum += double(*linked++);
      static_cast<T*>(p_.value)[image] = T(sum / double(p_.pairs));
    }
  }

  template <int N>
  void add_rows(int64_t row, T* first, T* second) const {
    const S* const y = y_ + row * width_;
    T t[N];
    for (int r = 0; r < N; ++r) t[r] = pull(row + r);
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V mean = at.load(mean_ + k), scale = at.load(scale_ + k), bias = at.load(bias_ + k);
      V sum{}, product{};
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V off = at.load(y + r * width_ + k) - mean;
        const V m = off * scale + bias > 0 ? V{} + t[r] : V{};
        sum += m;
        product += m * off;
      }
      at.store(at.load(first + k) + sum, first + k);
      at.store(at.load(second + k) + product, second + k);
    });
  }

  template <int N>
  void write_gradient(int64_t row, bool streaming) const {
    const S* const y = y_ + row * width_;
    S* const to = static_cast<S*>(p_.grad_y) + row * width_;
    const T *const one = static_cast<const T*>(p_.correction), *const two = one + width_;
    T t[N];
    for (int r = 0; r < N; ++r) t[r] = pull(row + r);
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V mean = at.load(mean_ + k), scale = at.load(scale_ + k), bias = at.load(bias_ + k),
              weight = at.load(weight_ + k), constant = at.load(one + k), along = at.load(two + k);
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V off = at.load(y + r * width_ + k) - mean;
        const V m = off * scale + bias > 0 ? t[r] * weight : V{};
        at.store(scale * ((m - constant) - along * off), to + r * width_ + k, streaming);
      }
    });
  }

  // A number near the mean of y: the mean of some rows.
  void sample(T* shift) const {
    constexpr int64_t kRows = 32;
    const int64_t rows = rows_ < kRows ? rows_ : kRows;
    memset(shift, 0, size_t(width_) * sizeof(T));
    for (int64_t r = 0; r < rows; ++r) {
      const S* const y = y_ + rows_ * r / rows * width_;
      for_columns<T>(width_, [&](int64_t k, auto at) {
        at.store(at.load(shift + k) + at.load(y + k) / T(rows), shift + k);
      });
    }
  }

  template <int N>
  void add_moments(const S* y, const T* shift, T* first, T* second) const {
    for_columns<T>(width_, [&](int64_t k, auto at) {
      const V from = at.load(shift + k);
      V sum{}, squares{};
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        const V off = at.load(y + r * width_ + k) - from;
        sum += off;
        squares += off * off;
      }
      at.store(at.load(first + k) + sum, first + k);
      at.store(at.load(second + k) + squares, second + k);
    });
  }

  const AffinityOutputProblem& p_;
  int64_t width_, rows_;
  const S* y_;
  const T *mean_, *scale_, *bias_, *weight_;
  T* slope_;
};

}  // namespace

namespace LOGO_SIMD {

Status affinity_output_moments(const AffinityOutputProblem& p) {
  return by_dtype<Output>(p, [](const auto& output) { return output.moments(); });
}
Status affinity_output(const AffinityOutputProblem& p) {
  return by_dtype<Output>(p, [](const auto& output) { return output.forward(); });
}
Status affinity_output_sums(const AffinityOutputProblem& p) {
  return by_dtype<Output>(p, [](const auto& output) { return output.sums(); });
}
Status affinity_output_backward(const AffinityOutputProblem& p) {
  return by_dtype<Output>(p, [](const auto& output) { return output.backward(); });
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
