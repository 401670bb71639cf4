// InfoNCE, forward: unit queries and the positives' logits, the pass over the negatives, losses.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include "cpu/in_memory.h"
#include "cpu/info_nce_pairs.h"
#include "cpu/info_nce_pass.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "cpu/totals.h"
#include "cpu/variants.h"

namespace logo {
namespace cpu {
namespace {

// Arrays that the threads share, carved out of one block.
template <class T>
struct Shared {
  T* queries;         // [N, row] unit rows
  T* pairs;           // [N, width] the same in bf16, two at a time, if products are of those
  double* per_image;  // [3, B]
  Found<T> found;

  static size_t bytes(const InfoNCEProblem& p, const Cut<T>& cut, int64_t paired) {
    const int64_t rows = cut.parts * cut.queries;
    return Scratch::bytes<T>(cut.queries * cut.row) + Scratch::bytes<T>(paired) +
           Scratch::bytes<double>(3 * p.images) + Scratch::bytes<SoftmaxRow<T> >(rows) +
           Scratch::bytes<T>(in_place(cut) ? 0 : rows * cut.row);
  }
  Shared(const InfoNCEProblem& p, const Cut<T>& cut, int64_t paired, Scratch& scratch)
      : queries(scratch.take<T>(cut.queries * cut.row)),
        pairs(scratch.take<T>(paired)),
        per_image(scratch.take<double>(3 * p.images)) {
    const int64_t rows = cut.parts * cut.queries;
    found.softmax = scratch.take<SoftmaxRow<T> >(rows);
    found.means = in_place(cut) ? static_cast<T*>(p.mean.data) : scratch.take<T>(rows * cut.row);
  }
  // Whether sums over the negatives lie in the place of the mean.
  static bool in_place(const Cut<T>& cut) { return cut.parts == 1 && cut.row == cut.dim; }
};

// Takes the calling thread's bands of queries past the negatives, one part after the other: a
// thread has few parts, and packs their tiles for many queries.
template <class T, Factors kFactors>
void run_pass(Pass<T, kFactors>& pass, const Cut<T>& cut, const Found<T>& found) {
  const Share share = share_of(cut.parts * cut.bands());
  for (int64_t at = share.first; at < share.last;) {
    const int64_t part = at / cut.bands(), begin = at - part * cut.bands();
    const int64_t left = cut.bands() - begin, wanted = share.last - at;
    const int64_t bands = wanted < left ? wanted : left;
    const int64_t first = begin * kBandRows, end = first + bands * kBandRows;
    pass.run(part, first, end < cut.queries ? end : cut.queries, found.softmax + part * cut.queries,
             found.means + part * cut.queries * cut.row);
    at += bands;
  }
}

template <class T, Factors kFactors>
Status run(const InfoNCEProblem& p) {
  const Cut<T> cut(p);
  const Softmax<T> softmax(p.temperature);
  const bool in_pairs = kFactors == Factors::pairs;
  const int64_t width = in_pairs ? (cut.dim + 1) / 2 : cut.dim;
  const int64_t paired = in_pairs ? cut.queries * width : 0;
  Scratch scratch;
  if (!scratch.reserve(Shared<T>::bytes(p, cut, paired))) return Status::out_of_memory;
  const Shared<T> shared(p, cut, paired, scratch);
  const Queries<T> queries = {in_pairs ? shared.pairs : shared.queries, in_pairs ? width : cut.row,
                              width};

  const int64_t unit = kBandRows * (p.negative_count() / cut.parts) * p.dim / kLanes<T>;
  const int threads = threads_for(cut.parts * cut.bands(), unit, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads)
  {
    const WithSubnormals mode;
    Pairs<T> pairs(p, cut, softmax, shared.queries, shared.per_image);
    Pass<T, kFactors> pass(p, cut, softmax, queries);
    const bool ready = pairs.reserve() && pass.reserve();
    const Share images = share_of(p.images);
    for (int64_t image = images.first; ready && image < images.last; ++image) {
      pairs.prepare(image);
      if constexpr (kFactors == Factors::pairs) {
        for (int64_t query = image * p.crops(); query < (image + 1) * p.crops(); ++query) {
          pair_row(shared.queries + query * cut.row, cut.dim, shared.pairs + query * width);
        }
      }
    }
#pragma omp critical
    short_of_memory = short_of_memory || !ready;
#pragma omp barrier
    if (!short_of_memory) run_pass(pass, cut, shared.found);
#pragma omp barrier
    for (int64_t image = images.first; !short_of_memory && image < images.last; ++image) {
      pairs.finish(image, shared.found);
    }
  }
  if (short_of_memory) return Status::out_of_memory;
  if (p.reduction != Reduction::pairs) {
    reduce<T>(shared.per_image, p.images, 2, p.reduction, p.total, p.terms,
              loss_unit<T>(p.temperature));
  }
  return Status::ok;
}

#if defined(__AVX512F__)
// Where queries and negatives came as bf16, their unit rows are owed no more than that.
bool all_bf16(const InfoNCEProblem& p) {
  const Rows& queries = p.global_crops.present() ? p.global_crops : p.local_crops;
  const Rows& negatives = p.negatives.present() ? p.negatives : p.positives;
  return queries.dtype == DType::bf16 && negatives.dtype == DType::bf16;
}
#endif

}  // namespace

namespace LOGO_SIMD {

Status info_nce(const InfoNCEProblem& given) {
  const InfoNCEProblem p = with_numbers(given);
  if (p.fp64()) return run<double, Factors::numbers>(p);
#if defined(__AVX512F__)
  if (all_bf16(p) && multiplies_pairs()) return run<float, Factors::pairs>(p);
#endif
  return run<float, Factors::numbers>(p);
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
