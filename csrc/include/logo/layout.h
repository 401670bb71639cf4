// Where an image's rows stand in the cosine loss, and their weights, for host and device.
#pragma once

#include <cmath>

#include "logo/macros.h"
#include "logo/problem.h"

namespace logo {

// Rows of an image: t | y | x | r, without x where the targets are the global crops themselves, and
// without r where the repulsion sees the local crops themselves. The partners of y, its targets and
// y itself, are neighbours, so that they enter a gradient as one range.
struct CosineLayout {
  int globals, locals;
  bool own_targets, own_features, repulsion;
  int t, y, x, r, rows;
  // Weights of a pair in an image's total.
  double gg_total, lg_total, ll_total;
  // Weights of a pair in the objective −gg −lg +ll, times an image's share in the result: 1/B for
  // the mean.
  double gg_weight, lg_weight, ll_weight;

  LOGO_METHOD explicit CosineLayout(const CosineProblem& p)
      : globals(int(p.global_crops.count)),
        locals(int(p.local_crops.count)),
        own_targets(!p.targets.present() || globals == 0),
        own_features(!p.features.present() || locals == 0),
        repulsion(p.repulsion && locals > 1),
        gg_total(p.gg_weight()),
        lg_total(p.lg_weight()),
        ll_total(p.ll_weight()) {
    t = 0;
    y = globals;
    const int after = globals + locals;
    x = own_targets ? t : after;
    r = own_features ? y : after + (own_targets ? 0 : globals);
    rows = after + (own_targets ? 0 : globals) + (own_features ? 0 : locals);
    const double share = p.reduction == Reduction::mean ? 1.0 / double(p.images) : 1.0;
    gg_weight = globals > 1 ? -p.gg_weight() * share : 0;  // no pairs: exactly no gradient
    lg_weight = -p.lg_weight() * share;
    ll_weight = p.ll_weight() * share;
  }

  // Local crops that are attracted and repelled at once.
  LOGO_METHOD bool y_repelled() const { return own_features && repulsion; }

  // Σ|w| over the partners of a row: ‖its gradient‖ is at most that over its norm. Repulsion: a
  // factor of ll_weight that was not known when this was made.
  LOGO_METHOD double x_weights() const { return fabs(gg_weight) * (globals - 1); }
  LOGO_METHOD double y_weights(double repulsion = 1) const {
    return fabs(lg_weight) * globals + (y_repelled() ? r_weights(repulsion) : 0.0);
  }
  LOGO_METHOD double r_weights(double repulsion = 1) const {
    return fabs(ll_weight * repulsion) * (locals - 1);
  }

  // Rows of one image in row_scale [B, ·]: global, local, features.
  LOGO_METHOD int scaled_rows() const { return globals + locals * (own_features ? 1 : 2); }
};

// each(rows) for the tensors whose crops are an image's rows, in the order of the rows.
template <class Each>
static void each_tensor(const CosineLayout& at, const CosineProblem& p, const Each& each) {
  const auto give = [&](const Rows& rows) {
    if (rows.present()) each(rows);
  };
  give(at.own_targets ? p.global_crops : p.targets);
  give(p.local_crops);
  if (!at.own_targets) give(p.global_crops);
  if (!at.own_features) give(p.features);
}

// An image's contributions: its total, and gg, lg, ll as means over their pairs.
struct CosineTerms {
  double total, gg, lg, ll;
};

// From sums of cosines over ordered pairs.
LOGO_FUNCTION CosineTerms cosine_terms(const CosineLayout& at, double gg, double lg, double ll,
                                       double repulsion = 1) {
  const double gg_pairs = at.globals * (at.globals - 1.0),
               lg_pairs = double(at.locals) * at.globals, ll_pairs = at.locals * (at.locals - 1.0);
  return {-at.gg_total * gg - at.lg_total * lg + at.ll_total * repulsion * ll / 2,
          gg_pairs > 0 ? -gg / gg_pairs : 0, lg_pairs > 0 ? -lg / lg_pairs : 0,
          at.repulsion ? ll / ll_pairs : 0};
}

// An fp16 row of a gradient is stored over a power of two (docs/design.md). This one puts `bound`,
// which no element exceeds, at 2¹⁴, four times below the end of fp16.
LOGO_FUNCTION int fp16_exponent(double bound) {
  if (!(bound > 0) || bound > 1e300) return 0;
  int exponent;
  frexp(bound < 65504 ? bound : 65504, &exponent);
  return exponent - 14;
}

}  // namespace logo
