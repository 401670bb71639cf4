// From sums to a batch norm and its gradients, one column at a time, for host and device.
//
// Norm: a problem with LOGO_BATCH_NORM_FIELDS.
#pragma once

#include <math.h>

#include "logo/problem.h"

namespace logo {

// Whether the running statistics take the place of the moments.
template <class Norm>
LOGO_FUNCTION bool is_constant(const Norm& n) {
  return n.norm_weight != nullptr && !n.batch;
}

// The share of the last batch in the running statistics; `batches` counts it already.
template <class Norm>
LOGO_FUNCTION double share_of_batch(const Norm& n) {
  return n.momentum < 0 ? 1 / double(*n.batches) : n.momentum;
}

// Writes a column of n.norm, [4, width], from its statistics.
template <class T, class Norm>
LOGO_FUNCTION void fold_column(const Norm& n, double mean, double var, int64_t column) {
  const double inverse = 1 / sqrt(var + n.eps);
  T* const to = static_cast<T*>(n.norm) + column;
  to[0] = T(mean);
  to[n.width] = T(double(static_cast<const T*>(n.norm_weight)[column]) * inverse);
  to[2 * n.width] = static_cast<const T*>(n.norm_bias)[column];
  to[3 * n.width] = T(inverse);
}

// Writes a column of n.norm from the statistics of a batch of so many values; the running
// statistics follow.
template <class T, class Norm>
LOGO_FUNCTION void fold_batch(const Norm& n, double mean, double var, double values,
                              int64_t column) {
  fold_column<T>(n, mean, var, column);
  if (n.running_mean == nullptr) return;
  const double share = share_of_batch(n);
  T* const running_mean = static_cast<T*>(n.running_mean) + column;
  T* const running_var = static_cast<T*>(n.running_var) + column;
  *running_mean = T(*running_mean + share * (mean - *running_mean));
  *running_var = T(*running_var + share * (var * (values / (values - 1)) - *running_var));
}

template <class T, class Norm>
LOGO_FUNCTION void fold_running(const Norm& n, int64_t column) {
  fold_column<T>(n, static_cast<const T*>(n.running_mean)[column],
                 static_cast<const T*>(n.running_var)[column], column);
}

// A column of facts, [5, width], from the sums (Σ m, Σ m·(v − mean)), m the gradient that arrives
// at n(v): the two corrections; the gradients to the norm's weight and bias; the gradient to a bias
// that was added to v.
//
// values: of how many values the statistics are; 0: they are constants. The last gradient vanishes
// where they are the batch's; NaN and infinity stay NaN.
template <class T>
LOGO_FUNCTION void write_facts(const T* norm, double first, double second, int64_t values,
                               int64_t column, int64_t width, T* to) {
  const double scale = double(norm[width + column]), inverse = double(norm[3 * width + column]);
  const bool constants = values == 0;
  to[column] = constants ? T(0) : T(first / double(values));
  to[width + column] = constants ? T(0) : T(second * inverse * inverse / double(values));
  to[2 * width + column] = T(second * inverse);
  to[3 * width + column] = T(first);
  to[4 * width + column] = T(scale * (constants ? first : first - first));
}

// p.facts of the hidden layer.
template <class T>
LOGO_FUNCTION void write_facts_of(const AffinityHiddenProblem& p, double first, double second,
                                  int64_t column) {
  write_facts(static_cast<const T*>(p.norm), first, second, p.batch ? p.all_pairs() : 0, column,
              p.width, static_cast<T*>(p.facts));
}

// p.facts of the output layer, [6, width]: the last row is the gradient to w₃. m is t·w₃, and the
// sums are those of t alone.
template <class T>
LOGO_FUNCTION void write_facts_of(const AffinityOutputProblem& p, double first, double second,
                                  int64_t column) {
  const T* const norm = static_cast<const T*>(p.norm);
  T* const to = static_cast<T*>(p.facts);
  const double w = double(static_cast<const T*>(p.last)[column]);
  write_facts(norm, first * w, second * w, p.batch ? p.all_pairs() : 0, column, p.width, to);
  to[5 * p.width + column] =
      T(second * double(norm[p.width + column]) + first * double(norm[2 * p.width + column]));
}

}  // namespace logo
