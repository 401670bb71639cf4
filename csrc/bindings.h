// What the bindings of both halves share: how Python's integers become a problem.
#pragma once

#include <pybind11/pybind11.h>

#include <tuple>

#include "logo/launch.h"

namespace logo {

// (address, dtype, count, strides over image, crop, element)
using RowsTuple = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t, int64_t>;

inline Rows rows(const RowsTuple& tuple) {
  const auto& [address, dtype, count, image, crop, element] = tuple;
  return {reinterpret_cast<void*>(address), static_cast<DType>(dtype), count, image, crop, element};
}

// Without `threads`.
inline CosineProblem cosine_problem(int64_t images, int64_t dim, const RowsTuple& global,
                                    const RowsTuple& local, const RowsTuple& targets,
                                    const RowsTuple& features, double gg_weight, double lg_weight,
                                    double ll_weight, bool repulsion, int reduction, bool fp64,
                                    const RowsTuple& grad_global, const RowsTuple& grad_local,
                                    const RowsTuple& grad_features, uintptr_t row_scale,
                                    uintptr_t total, uintptr_t terms) {
  CosineProblem p;
  p.images = images;
  p.dim = dim;
  p.global = rows(global);
  p.local = rows(local);
  p.targets = rows(targets);
  p.features = rows(features);
  p.gg_weight = gg_weight;
  p.lg_weight = lg_weight;
  p.ll_weight = ll_weight;
  p.repulsion = repulsion;
  p.reduction = static_cast<Reduction>(reduction);
  p.fp64 = fp64;
  p.grad_global = rows(grad_global);
  p.grad_local = rows(grad_local);
  p.grad_features = rows(grad_features);
  p.row_scale = reinterpret_cast<float*>(row_scale);
  p.total = reinterpret_cast<void*>(total);
  p.terms = reinterpret_cast<void*>(terms);
  return p;
}

inline SimilarityProblem similarity_problem(int64_t images, int64_t dim, const RowsTuple& a,
                                            const RowsTuple& b, const RowsTuple& cosines) {
  SimilarityProblem p;
  p.images = images;
  p.dim = dim;
  p.a = rows(a);
  p.b = rows(b);
  p.cosines = rows(cosines);
  return p;
}

// What both directions of InfoNCE are given, without `threads`.
inline InfoNCEProblem info_nce_problem(int64_t images, int64_t dim, const RowsTuple& global,
                                       const RowsTuple& local, const RowsTuple& positives,
                                       const RowsTuple& negatives, double temperature,
                                       uintptr_t temperature_at, const RowsTuple& pull,
                                       const RowsTuple& mean) {
  InfoNCEProblem p;
  p.images = images;
  p.dim = dim;
  p.global = rows(global);
  p.local = rows(local);
  p.positives = rows(positives);
  p.negatives = rows(negatives);
  p.temperature = temperature;
  p.temperature_at = reinterpret_cast<const void*>(temperature_at);
  p.pull = rows(pull);
  p.mean = rows(mean);
  p.fp64 = p.mean.dtype == DType::f64;
  return p;
}

inline void set_results(InfoNCEProblem& p, double gg_weight, double lg_weight, int reduction,
                        uintptr_t total, uintptr_t terms, uintptr_t lse) {
  p.gg_weight = gg_weight;
  p.lg_weight = lg_weight;
  p.reduction = static_cast<Reduction>(reduction);
  p.total = reinterpret_cast<void*>(total);
  p.terms = reinterpret_cast<void*>(terms);
  p.lse = reinterpret_cast<void*>(lse);
}

inline void set_gradients(InfoNCEProblem& p, const RowsTuple& upstream,
                          const RowsTuple& grad_global, const RowsTuple& grad_local,
                          uintptr_t grad_temperature) {
  p.upstream = rows(upstream);
  p.grad_global = rows(grad_global);
  p.grad_local = rows(grad_local);
  p.grad_temperature = reinterpret_cast<void*>(grad_temperature);
}

// The functions of the CPU's pair stage, into a module.
void bind_pair_stage(pybind11::module_& m);

// The functions of the CUDA half, into a module.
void bind_cuda(pybind11::module_& m);

}  // namespace logo
