// InfoNCE, backward: gradients of the queries and of the temperature, from the pass that forward
// made.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include <cmath>

#include "cpu/columns.h"
#include "cpu/finite.h"
#include "cpu/in_memory.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "cpu/sums.h"
#include "cpu/unit_row.h"
#include "cpu/variants.h"
#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

// One thread's gradients, image by image.
template <class T>
class Gradients {
 public:
  explicit Gradients(const InfoNCEProblem& p)
      : p_(p), padded_((p.dim + kLanes<T> - 1) / kLanes<T> * kLanes<T>), row_(p.dim, padded_) {}

  bool reserve() {
    const size_t units = Scratch::bytes<T>(p_.positives.count * padded_);
    if (!scratch_.reserve(units + Scratch::bytes<T>(padded_) + row_.bytes())) return false;
    row_.attach(scratch_);
    units_ = scratch_.take<T>(p_.positives.count * padded_);
    direction_ = scratch_.take<T>(padded_);
    return true;
  }

  // Writes the image's gradients; returns Σ δ·q̂ over its queries.
  double run(int64_t image) {
    for (int64_t k = 0; k < p_.positives.count; ++k) {
      row_.read(p_.positives, image, k);
      row_.write(units_ + k * padded_);
    }
    double sum = 0;
    for (int64_t crop = 0; crop < p_.crops(); ++crop) {
      const bool global = crop < p_.global_crops.count;
      const int64_t at = global ? crop : crop - p_.global_crops.count;
      const Rows& gradient = global ? p_.grad_global : p_.grad_local;
      if (!gradient.present() && p_.grad_temperature == nullptr) continue;
      row_.read(global ? p_.global_crops : p_.local_crops, image, at);
      direct(image, crop);
      const double along = project();
      sum += along;
      if (gradient.present()) write(gradient, image, at, T(along));
    }
    return sum;
  }

 private:
  // δ = Σ w (O − k̂⁺) over the pairs of a query.
  void direct(int64_t image, int64_t crop) {
    const int64_t query = image * p_.crops() + crop;
    const T* const pull = static_cast<const T*>(p_.pull.data) + query * p_.positives.count;
    const T* const mean = static_cast<const T*>(p_.mean.data) + query * p_.dim;
    const T* const upstream = static_cast<const T*>(p_.upstream.data) +
                              image * p_.upstream.image_stride + crop * p_.upstream.crop_stride;
    const int64_t step = p_.upstream.element_stride;
    T sum = 0;
    scaled_ = false;
    for (int64_t k = 0; k < p_.positives.count; ++k) {
      if (p_.is_pair(crop, k)) sum += upstream[k * step] * pull[k];
      scaled_ = scaled_ || std::abs(upstream[k * step]) > 1;
    }
    for_columns<T>(p_.dim, [&](int64_t d, auto at) {
      *reinterpret_cast<Vector<T>*>(direction_ + d) = at.load(mean + d) * sum;
    });
    for (int64_t k = 0; k < p_.positives.count; ++k) {
      if (!p_.is_pair(crop, k)) continue;
      const T weight = upstream[k * step] * pull[k];
      const T* const unit = units_ + k * padded_;
      for (int64_t d = 0; d < padded_; d += kLanes<T>) {
        *reinterpret_cast<Vector<T>*>(direction_ + d) -= load(unit + d) * weight;
      }
    }
  }

  // δ·q̂.
  double project() const {
    Vector<T> sums{};
    for (int64_t d = 0; d < padded_; d += kLanes<T>) sums += load(direction_ + d) * row_.unit(d);
    return sum_lanes<T>(sums);
  }

  void write(const Rows& gradient, int64_t image, int64_t crop, T along) {
    char* const to = const_cast<char*>(row_address(gradient, image, crop));
    switch (gradient.dtype) {
      case DType::f32: return write(reinterpret_cast<float*>(to), along);
      case DType::f64: return write(reinterpret_cast<double*>(to), along);
      case DType::bf16: return write(reinterpret_cast<bf16*>(to), along);
      case DType::f16: return write(reinterpret_cast<f16*>(to), along);
    }
  }

  // (δ − (δ·q̂) q̂)/(τ‖q‖) as To. What is too large saturates; an fp16 that a loss scaler may have
  // multiplied becomes infinite, for it to see.
  template <class To>
  void write(To* to, T along) {
    if (row_.zero()) {
      memset(to, 0, size_t(p_.dim) * sizeof(To));
      return;
    }
    const bool saturates = kDType<To> != DType::f16 || !scaled_;
    const double factor = row_.inverse() / p_.temperature;
    const bool ordinary = row_.divisor() == 1 && T(factor) >= kLeast && T(factor) <= 1 / kLeast;
    if constexpr ((sizeof(T) == 8) == (sizeof(To) == 8)) {
      if (ordinary) {
        for_columns<T>(p_.dim, [&](int64_t d, auto at) {
          Vector<T> value = (load(direction_ + d) - along * row_.unit(d)) * T(factor);
          if (saturates) value = clamp(value, T(largest(kDType<To>)));
          at.store(value, to + d);
        });
        return;
      }
    }
    // Mantissas, and the power of two apart: neither the factors nor their product need be numbers.
    int of_temperature = 0, of_divisor = 0;
    const double temperature = frexp(p_.temperature, &of_temperature);
    const double divisor = frexp(double(row_.divisor()), &of_divisor);
    const int power = -of_temperature - of_divisor;
    for (int64_t d = 0; d < p_.dim; ++d) {
      const T across = direction_[d] - along * row_.unit(d / kLanes<T> * kLanes<T>)[d % kLanes<T>];
      double value = ldexp(double(across) * row_.inverse() / temperature / divisor, power);
      const double most = largest(kDType<To>);
      if (saturates) value = value > most ? most : value < -most ? -most : value;  // NaN stays
      narrow_to(value, to + d);
    }
  }
  static void narrow_to(double value, double* to) { *to = value; }
  template <class To>
  static void narrow_to(double value, To* to) {
    from_float(float(value), to);
  }

  // The least factor whose products with ordinary numbers are ordinary.
  static constexpr T kLeast = sizeof(T) == 4 ? T(0x1p-80) : T(0x1p-600);

  const InfoNCEProblem& p_;
  const int64_t padded_;  // D, in whole vectors
  UnitRow<T> row_;        // the query's
  Scratch scratch_;
  T* units_ = nullptr;      // [P, padded] positives
  T* direction_ = nullptr;  // [padded] δ
  bool scaled_ = false;     // whether the upstream gradient of a pair is more than one
};

template <class T>
Status run(const InfoNCEProblem& p) {
  Scratch scratch;
  if (!scratch.reserve(Scratch::bytes<double>(p.images))) return Status::out_of_memory;
  double* const along = scratch.take<double>(p.images);
  const int threads = threads_for(p.images, (p.crops() + p.positives.count) * p.dim, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
  {
    const WithSubnormals mode;
    Gradients<T> gradients(p);
    const bool ready = gradients.reserve();
    short_of_memory = !ready;
    const Share share = share_of(p.images);
    for (int64_t image = share.first; ready && image < share.last; ++image) {
      along[image] = gradients.run(image);
    }
  }
  if (short_of_memory) return Status::out_of_memory;
  if (p.grad_temperature != nullptr) {
    double sum = 0;
    for (int64_t image = 0; image < p.images; ++image) sum += along[image];
    *static_cast<T*>(p.grad_temperature) = finite<T>(-sum / p.temperature / p.temperature);
  }
  return Status::ok;
}

}  // namespace

namespace LOGO_SIMD {

Status info_nce_backward(const InfoNCEProblem& given) {
  const InfoNCEProblem p = with_numbers(given);
  return p.fp64() ? run<double>(p) : run<float>(p);
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
