// What the launchers of InfoNCE are given; backends/protocol.py says what they compute.
//
// Arrays other than rows are dense, and fp64 if any input is, else fp32.
#pragma once

#include <cstdint>

#include "logo/macros.h"
#include "logo/problem.h"

namespace logo {

// Queries of an image are its global crops, then its local ones.
struct ContrastProblem {
  int64_t images = 0;
  int64_t dim = 0;
  Rows global;     // [B, G, D] queries; may be absent
  Rows local;      // [B, L, D] queries; may be absent
  Rows positives;  // [B, P, D]; P = G where there are global crops
  Rows negatives;  // [K, D] as one image; absent: the positives of the other images
  double temperature = 1;
  const void* temperature_at = nullptr;  // where it is, if the host does not know it
  double gg_weight = 0, lg_weight = 0;   // of the loss of one pair in an image's total
  Reduction reduction = Reduction::mean;
  bool fp64 = false;      // dtype of the arrays: fp64, else fp32
  void* total = nullptr;  // [], [B] or [B, V, P]
  void* terms = nullptr;  // [2] or [2, B]; not for Reduction::pairs
  void* lse = nullptr;    // [B, V]
  void* pull = nullptr;   // [B, V, P]; written by the forward, read by the backward, like the mean
  void* mean = nullptr;   // [B, V, D]
  // Backward only.
  const void* upstream = nullptr;           // of the shape of total
  int64_t upstream_strides[3] = {0, 0, 0};  // over B, V, P; 0 where total has no such dimension
  Rows grad_global;  // absent: not wanted; unit stride over D, like the other gradient
  Rows grad_local;
  void* grad_temperature = nullptr;  // []; null: not wanted
  int threads = 1;                   // of the CPU

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
