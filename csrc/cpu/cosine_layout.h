// The layout of an image in the cosine loss, for its fast and its exact evaluation: where rows come
// from, and where terms go.
#pragma once

#include "logo/layout.h"

namespace logo {
namespace cpu {
namespace {

struct Layout : CosineLayout {
  const CosineProblem& p;

  explicit Layout(const CosineProblem& problem) : CosineLayout(problem), p(problem) {}

  template <class Image, class... Arguments>
  void add_rows(Image& image, Arguments... arguments) const {
    each_tensor(*this, p, [&](const Rows& rows) { image.add(rows, arguments...); });
  }

  // Null without fp16 gradients.
  float* row_scale(int64_t image) const {
    return p.row_scale == nullptr ? nullptr : p.row_scale + image * scaled_rows();
  }

  // per_image [4, B]: total, gg, lg, ll from sums of cosines over ordered pairs.
  void write_terms(int64_t image, double gg, double lg, double ll, double* per_image) const {
    const CosineTerms terms = cosine_terms(*this, gg, lg, ll);
    per_image[image] = terms.total;
    per_image[p.images + image] = terms.gg;
    per_image[2 * p.images + image] = terms.lg;
    per_image[3 * p.images + image] = terms.ll;
  }
};

}  // namespace
}  // namespace cpu
}  // namespace logo
