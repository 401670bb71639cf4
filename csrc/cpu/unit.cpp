// Rows as unit vectors, and the gradient through them.
//
// A row is widened into a buffer in L1 first, so that no dtype or stride concerns the arithmetic.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include "logo/unit.h"

#include "cpu/columns.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "cpu/variants.h"

namespace logo {
namespace cpu {
namespace {

inline double wide_of(double value) { return value; }
template <class S>
inline float wide_of(S value) {
  return to_float(value);
}
inline void narrow_to(double value, double* to) { *to = value; }
template <class S>
inline void narrow_to(double value, S* to) {
  from_float(float(value), to);
}

template <class T, class S>
inline void widen_row(const char* at, int64_t stride, int64_t dim, T* to) {
  const S* const from = reinterpret_cast<const S*>(at);
  if constexpr (sizeof(T) == sizeof(float) || sizeof(S) == sizeof(double)) {
    if (stride == 1) {
      return for_columns<T>(dim, [&](int64_t k, auto at) { at.store(at.load(from + k), to + k); });
    }
  }
  for (int64_t k = 0; k < dim; ++k) to[k] = T(wide_of(from[k * stride]));
}

template <class T, class S>
inline void narrow_row(const T* from, int64_t stride, int64_t dim, char* at) {
  S* const to = reinterpret_cast<S*>(at);
  if constexpr (sizeof(T) == sizeof(float) ? sizeof(S) <= sizeof(float)
                                           : sizeof(S) == sizeof(double)) {
    if (stride == 1) {
      return for_columns<T>(dim, [&](int64_t k, auto at) { at.store(at.load(from + k), to + k); });
    }
  }
  for (int64_t k = 0; k < dim; ++k) narrow_to(double(from[k]), to + k * stride);
}

template <class T>
inline void read_row(const Rows& rows, int64_t image, int64_t crop, int64_t dim, T* to) {
  const char* const at = row_address(rows, image, crop);
  switch (rows.dtype) {
    case DType::f32: return widen_row<T, float>(at, rows.element_stride, dim, to);
    case DType::f64:
      if constexpr (sizeof(T) == sizeof(double)) {
        return widen_row<T, double>(at, rows.element_stride, dim, to);
      }
      return;  // fp64 rows are computed in fp64
    case DType::bf16: return widen_row<T, bf16>(at, rows.element_stride, dim, to);
    case DType::f16: return widen_row<T, f16>(at, rows.element_stride, dim, to);
  }
}

template <class T>
inline void write_row(const T* from, const Rows& rows, int64_t image, int64_t crop, int64_t dim) {
  char* const at = const_cast<char*>(row_address(rows, image, crop));
  switch (rows.dtype) {
    case DType::f32: return narrow_row<T, float>(from, rows.element_stride, dim, at);
    case DType::f64: return narrow_row<T, double>(from, rows.element_stride, dim, at);
    case DType::bf16: return narrow_row<T, bf16>(from, rows.element_stride, dim, at);
    case DType::f16: return narrow_row<T, f16>(from, rows.element_stride, dim, at);
  }
}

template <class T>
inline T sum_of(Vector<T> lanes) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += lanes[lane];
  return sum;
}

// Σ x·y. Two chains of additions hide each other's latency.
template <class T>
inline T dot(const T* x, const T* y, int64_t dim) {
  Vector<T> sums[2] = {};
  int turn = 0;
  for_columns<T>(dim,
                 [&](int64_t k, auto at) { sums[turn ^= 1] += at.load(x + k) * at.load(y + k); });
  return sum_of<T>(sums[0] + sums[1]);
}

template <class T>
class Unit {
 public:
  explicit Unit(const UnitProblem& p) : p_(p), factors_(static_cast<T*>(p.factors)) {}

  Status forward() const {
    return each_row(p_.z.count, 1, [&](int64_t image, int64_t crop, T* z, T*) {
      read_row(p_.z, image, crop, p_.dim, z);
      T first = 1, squares = dot(z, z, p_.dim);
      if (!ordinary(squares)) {
        first = towards_one(largest_of(z));
        scale(z, first);
        squares = dot(z, z, p_.dim);
      }
      const UnitFactors<T> of = unit_factors(first, squares);
      scale(z, of.second);
      write_row(z, p_.unit, image, crop, p_.dim);
      T* const to = factors_ + 2 * (image * p_.z.count + crop);
      to[0] = of.first;
      to[1] = of.second;
    });
  }

  // (g − (g·ẑ) ẑ)/‖z‖; beyond the largest number of its dtype, that number.
  Status backward() const {
    const T most = T(largest(p_.grad_z.dtype));
    return each_row(p_.unit.count, 2, [&](int64_t image, int64_t crop, T* unit, T* grad) {
      read_row(p_.unit, image, crop, p_.dim, unit);
      read_row(p_.grad, image, crop, p_.dim, grad);
      const T along = dot(unit, grad, p_.dim);
      const T* const of = factors_ + 2 * (image * p_.grad_z.count + crop);
      const T first = of[0], second = of[1];
      for_columns<T>(p_.dim, [&](int64_t k, auto at) {
        Vector<T> to = (at.load(grad + k) - along * at.load(unit + k)) * second * first;
        to = to > most ? Vector<T>{} + most : to;  // NaN stays
        at.store(to < -most ? Vector<T>{} - most : to, grad + k);
      });
      write_row(grad, p_.grad_z, image, crop, p_.dim);
    });
  }

 private:
  template <class Each>
  Status each_row(int64_t crops, int buffers, const Each& each) const {
    const int64_t rows = p_.images * crops;
    const int threads = threads_for(rows, p_.dim, p_.threads);
    bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
    {
      const WithSubnormals mode;
      Scratch scratch;
      short_of_memory = !scratch.reserve(buffers * Scratch::bytes<T>(p_.dim));
      if (!short_of_memory) {
        T* const first = scratch.take<T>(p_.dim);
        T* const second = buffers > 1 ? scratch.take<T>(p_.dim) : nullptr;
        const Share share = share_of(rows);
        for (int64_t row = share.first; row < share.last; ++row) {
          each(row / crops, row % crops, first, second);
        }
      }
    }
    return short_of_memory ? Status::out_of_memory : Status::ok;
  }

  void scale(T* row, T factor) const {
    for_columns<T>(p_.dim,
                   [&](int64_t k, auto at) { at.store(at.load(row + k) * factor, row + k); });
  }

  T largest_of(const T* row) const {
    T found = 0;
    for (int64_t k = 0; k < p_.dim; ++k) {
      const T size = row[k] < 0 ? -row[k] : row[k];
      if (size > found) found = size;
    }
    return found;
  }

  const UnitProblem& p_;
  T* factors_;
};

}  // namespace

namespace LOGO_SIMD {

Status unit(const UnitProblem& p) {
  return p.wide ? Unit<double>(p).forward() : Unit<float>(p).forward();
}
Status unit_backward(const UnitProblem& p) {
  return p.wide ? Unit<double>(p).backward() : Unit<float>(p).backward();
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
