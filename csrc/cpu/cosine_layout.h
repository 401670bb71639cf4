// What the fast and the exact evaluation of an image's cosine loss have in common: where its rows
// stand, what weighs on them, where its terms go.
#pragma once

#include <cmath>

#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

// Rows of an image: t | y | x | r, without x where the targets are the global crops themselves, and
// without r where the repulsion sees the local crops themselves.
struct Layout {
  const CosineProblem& p;
  int globals, locals;
  bool own_targets, own_features, repulsion;
  int t, y, x, r, rows;
  // Weights of a pair in the objective −gg −lg +ll, times an image's share in the result: 1/B for
  // the mean.
  double gg_weight, lg_weight, ll_weight;

  explicit Layout(const CosineProblem& problem)
      : p(problem),
        globals(int(p.global.count)),
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
    const double share = p.reduction == Reduction::mean ? 1.0 / double(p.images) : 1.0;
    gg_weight = globals > 1 ? -p.gg_weight * share : 0;  // no pairs: exactly no gradient
    lg_weight = -p.lg_weight * share;
    ll_weight = p.ll_weight * share;
  }

  template <class Image, class... Arguments>
  void add_rows(Image& image, Arguments... arguments) const {
    image.add(own_targets ? p.global : p.targets, arguments...);
    if (locals > 0) image.add(p.local, arguments...);
    if (!own_targets) image.add(p.global, arguments...);
    if (!own_features) image.add(p.features, arguments...);
  }

  // Local crops that are attracted and repelled at once.
  bool y_repelled() const { return own_features && repulsion; }

  // Σ|w| over the partners of a row: ‖its gradient‖ is at most that over its norm.
  double x_weights() const { return fabs(gg_weight) * (globals - 1); }
  double y_weights() const {
    return fabs(lg_weight) * globals + (y_repelled() ? r_weights() : 0.0);
  }
  double r_weights() const { return fabs(ll_weight) * (locals - 1); }

  // Rows of row_scale [B, ·]: global, local, features; null without fp16 gradients.
  float* row_scale(int64_t image) const {
    const int per_image = globals + locals * (own_features ? 1 : 2);
    return p.row_scale == nullptr ? nullptr : p.row_scale + image * per_image;
  }

  // per_image [4, B]: total, gg, lg, ll from sums of cosines over ordered pairs.
  void write_terms(int64_t image, double gg, double lg, double ll, double* per_image) const {
    const double gg_pairs = globals * (globals - 1.0), lg_pairs = double(locals) * globals,
                 ll_pairs = locals * (locals - 1.0);
    per_image[image] = -p.gg_weight * gg - p.lg_weight * lg + p.ll_weight * ll / 2;
    per_image[p.images + image] = gg_pairs > 0 ? -gg / gg_pairs : 0;
    per_image[2 * p.images + image] = lg_pairs > 0 ? -lg / lg_pairs : 0;
    per_image[3 * p.images + image] = repulsion ? ll / ll_pairs : 0;
  }
};

// An fp16 row of a gradient is divided by a power of two (see backends/protocol.py), this one: it
// puts `bound`, which no element exceeds, at 2¹⁴, four times below the end of fp16.
inline int fp16_exponent(double bound) {
  if (!(bound > 0) || bound > 1e300) return 0;
  int exponent;
  frexp(bound < 65504 ? bound : 65504, &exponent);
  return exponent - 14;
}

}  // namespace
}  // namespace cpu
}  // namespace logo
