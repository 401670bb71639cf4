// What the launchers of InfoNCE are given, forward and backward; backends/protocol.py says what
// they compute.
#pragma once

#include <cstdint>

#include "logo/macros.h"
#include "logo/problem.h"

namespace logo {

// An image has V queries: its G global crops, then its L local ones. Each has the P positives of
// its image, but global crop i not positive i.
struct InfoNCEProblem {
  int64_t images = 0;
  int64_t dim = 0;
  Rows global;     // [B, G, D]; absent: they are no queries
  Rows local;      // [B, L, D], of the dtype of the global ones; absent likewise
  Rows positives;  // [B, P, D]
  Rows negatives;  // [K, D] as rows of one image; absent: the positives of the other images
  double temperature = 1;
  const void* temperature_at = nullptr;  // a number in memory that takes its place; null: none
  double gg_weight = 0, lg_weight = 0;   // of the loss of one pair in its image's total
  Reduction reduction = Reduction::mean;
  bool fp64 = false;  // dtype of temperature_at and of all that follows but the crops' gradients

  void* total = nullptr;  // [], [B] or, of pairs, [B, V, P]
  void* terms = nullptr;  // [2] or [2, B]; none of pairs
  void* lse = nullptr;    // [B, V]
  Rows pull;  // [B, V, P] with D standing for P, dense; backward reads what forward wrote
  Rows mean;  // [B, V, D]; likewise

  // Of backward alone.
  Rows upstream;     // as [B, V, P]; strides of zero along what the total has been summed over
  Rows grad_global;  // absent: not wanted; unit stride over D, as the other
  Rows grad_local;
  void* grad_temperature = nullptr;  // []; null: not wanted

  int threads = 1;  // of the CPU

  LOGO_METHOD int64_t crops() const { return global.count + local.count; }  // V
  LOGO_METHOD int64_t queries() const { return images * crops(); }          // N
  LOGO_METHOD int64_t negative_count() const {
    return negatives.present() ? negatives.count : images * positives.count;
  }
  // A global crop is no positive of itself.
  LOGO_METHOD bool is_pair(int64_t crop, int64_t positive) const {
    return crop >= global.count || crop != positive;
  }
};

}  // namespace logo
