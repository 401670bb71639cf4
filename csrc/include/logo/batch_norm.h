// What the sums of batch norm become, one column at a time, for host and device.
#pragma once

#include <math.h>

#include "logo/pair_problem.h"

namespace logo {

// The share of the last batch in the running statistics; `batches` counts it already.
LOGO_FUNCTION double share_of_batch(const BatchNorm& n) {
  return n.momentum < 0 ? 1 / double(*n.batches) : n.momentum;
}

// norm [4, width] of a column from its statistics.
template <class T>
LOGO_FUNCTION void fold_column(const BatchNorm& n, double mean, double var, int64_t column,
                               int64_t width, void* norm) {
  const double inverse = 1 / sqrt(var + n.eps);
  T* const to = static_cast<T*>(norm) + column;
  to[0] = T(mean);
  to[width] = T(double(static_cast<const T*>(n.weight)[column]) * inverse);
  to[2 * width] = static_cast<const T*>(n.bias)[column];
  to[3 * width] = T(inverse);
}

// Those of the batch, of so many values; the running statistics follow.
template <class T>
LOGO_FUNCTION void fold_batch(const BatchNorm& n, double mean, double var, double values,
                              int64_t column, int64_t width, void* norm) {
  fold_column<T>(n, mean, var, column, width, norm);
  if (n.mean == nullptr) return;
  const double share = share_of_batch(n);
  T *const running_mean = static_cast<T*>(n.mean) + column, *const running_var =
                                                                static_cast<T*>(n.var) + column;
  *running_mean = T(*running_mean + share * (mean - *running_mean));
  *running_var = T(*running_var + share * (var * (values / (values - 1)) - *running_var));
}

template <class T>
LOGO_FUNCTION void fold_running(const BatchNorm& n, int64_t column, int64_t width, void* norm) {
  fold_column<T>(n, static_cast<const T*>(n.mean)[column], static_cast<const T*>(n.var)[column],
                 column, width, norm);
}

// facts [5, width] of a column from (Σ m, Σ m·(v − mean)), m the gradient that arrives at n(v):
// the two corrections; the gradients to weight and bias; that to a bias which was added to v.
//
// The last one vanishes where the statistics are the batch's; NaN and infinity stay NaN.
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

// The same after the second product: [6, width], the last of them the gradient to w₃; t_p·w₃ is m,
// and the sums are those of t alone.
template <class T>
LOGO_FUNCTION void write_output_facts(const T* norm, const T* weight, double first, double second,
                                      int64_t values, int64_t column, int64_t width, T* to) {
  const double w = double(weight[column]);
  write_facts(norm, first * w, second * w, values, column, width, to);
  to[5 * width + column] =
      T(second * double(norm[width + column]) + first * double(norm[2 * width + column]));
}

}  // namespace logo
