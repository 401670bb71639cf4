// Cosine LoGo loss and gradient: one pass per image.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include <initializer_list>

#include "cpu/cosine_exact.h"
#include "cpu/cosine_fast.h"
#include "cpu/in_memory.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "cpu/totals.h"
#include "cpu/variants.h"

namespace logo {
namespace cpu {
namespace {

// T is the compute type: fp64 if any input is fp64, else fp32.
template <class T>
Status run(const CosineProblem& p) {
  const Layout layout(p);
  const std::initializer_list<const Rows*> gradients = {&p.grad_global, &p.grad_local,
                                                        &p.grad_features};
  int64_t written = 0;
  // fp64 constants beside narrower crops, whose gradients are narrower than the arithmetic.
  bool mixed = false;
  for (const Rows* gradient : gradients) {
    if (!gradient->present()) continue;
    written += p.images * gradient->count * p.dim * dtype_bytes(gradient->dtype);
    mixed = mixed || (gradient->dtype == DType::f64) != (sizeof(T) == 8);
  }
  const bool streaming = written > kStreamingBytes;
  Scratch scratch;
  if (!scratch.reserve(Scratch::bytes<double>(4 * p.images))) return Status::out_of_memory;
  double* const per_image = scratch.take<double>(4 * p.images);

  const int threads = threads_for(p.images, layout.rows * p.dim, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
  {
    const WithSubnormals mode;
    FastCosine<T> fast(layout, streaming);
    ExactCosine exact(layout);
    short_of_memory = !fast.reserve();
    const Share share = share_of(p.images);
    for (int64_t image = share.first; !short_of_memory && image < share.last; ++image) {
      const bool done = !mixed && fast.run(image, image + 1 < share.last, per_image);
      if (!done) short_of_memory = !exact.run(image, per_image);
    }
    streaming_fence(streaming);
  }
  if (short_of_memory) return Status::out_of_memory;
  reduce<T>(per_image, p.images, 3, p.reduction, p.total, p.terms);
  return Status::ok;
}

}  // namespace

namespace LOGO_SIMD {

Status cosine(const CosineProblem& given) {
  const CosineProblem p = with_numbers(given);
  return p.fp64() ? run<double>(p) : run<float>(p);
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
