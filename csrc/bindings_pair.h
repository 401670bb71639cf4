// The pair stage's launchers as functions of Python, of either half: integers become a problem.
//
// `Where` is what a half has to be told besides the problem: backends/cpu_pairs.py and
// backends/cuda_pairs.py give it. Arrays are named by the caller; those it leaves out are null.
#pragma once

#include <pybind11/pybind11.h>

#include <tuple>

#include "bindings.h"
#include "logo/pair_problem.h"

namespace logo {

template <class Where, void (*run)(const Where&, PairHiddenProblem&)>
void bind_pair_hidden(pybind11::module_& m, const char* name) {
  using pybind11::arg;
  m.def(
      name,
      [](const Where& where, int64_t images, int64_t crops, int64_t width, int64_t roll, int dtype,
         uintptr_t a, uintptr_t c, uintptr_t norm, uintptr_t grad_x, uintptr_t correction,
         uintptr_t moments, uintptr_t x, uintptr_t to_a, uintptr_t to_c, uintptr_t sums,
         uintptr_t grad_a, uintptr_t grad_c) {
        PairHiddenProblem p;
        p.images = images;
        p.crops = crops;
        p.width = width;
        p.roll = roll;
        p.dtype = static_cast<DType>(dtype);
        p.a = reinterpret_cast<void*>(a);
        p.c = reinterpret_cast<void*>(c);
        p.norm = reinterpret_cast<void*>(norm);
        p.grad_x = reinterpret_cast<void*>(grad_x);
        p.correction = reinterpret_cast<void*>(correction);
        p.moments = reinterpret_cast<void*>(moments);
        p.x = reinterpret_cast<void*>(x);
        p.to_a = reinterpret_cast<void*>(to_a);
        p.to_c = reinterpret_cast<void*>(to_c);
        p.sums = reinterpret_cast<void*>(sums);
        p.grad_a = reinterpret_cast<void*>(grad_a);
        p.grad_c = reinterpret_cast<void*>(grad_c);
        run(where, p);
      },
      arg("where"), arg("images"), arg("crops"), arg("width"), arg("roll"), arg("dtype"),
      pybind11::kw_only(), arg("a") = 0, arg("c") = 0, arg("norm") = 0, arg("grad_x") = 0,
      arg("correction") = 0, arg("moments") = 0, arg("x") = 0, arg("to_a") = 0, arg("to_c") = 0,
      arg("sums") = 0, arg("grad_a") = 0, arg("grad_c") = 0);
}

template <class Where, void (*run)(const Where&, PairOutputProblem&)>
void bind_pair_output(pybind11::module_& m, const char* name) {
  using pybind11::arg;
  m.def(
      name,
      [](const Where& where, int64_t images, int64_t pairs, int64_t width, int link, int dtype,
         uintptr_t y, uintptr_t norm, uintptr_t weight, uintptr_t bias, uintptr_t grad,
         uintptr_t correction, uintptr_t moments, uintptr_t value, uintptr_t slope, uintptr_t sums,
         uintptr_t grad_y) {
        PairOutputProblem p;
        p.images = images;
        p.pairs = pairs;
        p.width = width;
        p.link = static_cast<Link>(link);
        p.dtype = static_cast<DType>(dtype);
        p.y = reinterpret_cast<void*>(y);
        p.norm = reinterpret_cast<void*>(norm);
        p.weight = reinterpret_cast<void*>(weight);
        p.bias = reinterpret_cast<void*>(bias);
        p.grad = reinterpret_cast<void*>(grad);
        p.correction = reinterpret_cast<void*>(correction);
        p.moments = reinterpret_cast<void*>(moments);
        p.value = reinterpret_cast<void*>(value);
        p.slope = reinterpret_cast<void*>(slope);
        p.sums = reinterpret_cast<void*>(sums);
        p.grad_y = reinterpret_cast<void*>(grad_y);
        run(where, p);
      },
      arg("where"), arg("images"), arg("pairs"), arg("width"), arg("link"), arg("dtype"),
      pybind11::kw_only(), arg("y") = 0, arg("norm") = 0, arg("weight") = 0, arg("bias") = 0,
      arg("grad") = 0, arg("correction") = 0, arg("moments") = 0, arg("value") = 0,
      arg("slope") = 0, arg("sums") = 0, arg("grad_y") = 0);
}

// A layer is a batch norm and what follows it, in one call; its launchers run in turn.
//
// (weight, bias, whether of the batch, mean, var, batches, momentum, epsilon)
using BatchNormTuple =
    std::tuple<uintptr_t, uintptr_t, bool, uintptr_t, uintptr_t, uintptr_t, double, double>;

inline BatchNorm batch_norm(const BatchNormTuple& tuple) {
  const auto& [weight, bias, batch, mean, var, batches, momentum, eps] = tuple;
  BatchNorm n;
  n.weight = reinterpret_cast<void*>(weight);
  n.bias = reinterpret_cast<void*>(bias);
  n.batch = batch;
  n.mean = reinterpret_cast<void*>(mean);
  n.var = reinterpret_cast<void*>(var);
  n.batches = reinterpret_cast<int64_t*>(batches);
  n.momentum = momentum;
  n.eps = eps;
  return n;
}

// (images, crops, width, roll, dtype) and (images, pairs, width, link, dtype)
using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int>;

inline PairHiddenProblem hidden_problem(const Sizes& sizes, uintptr_t a, uintptr_t c,
                                        uintptr_t norm) {
  PairHiddenProblem p;
  int dtype;
  std::tie(p.images, p.crops, p.width, p.roll, dtype) = sizes;
  p.dtype = static_cast<DType>(dtype);
  p.a = reinterpret_cast<void*>(a);
  p.c = reinterpret_cast<void*>(c);
  p.norm = reinterpret_cast<void*>(norm);
  return p;
}

inline PairOutputProblem output_problem(const Sizes& sizes, uintptr_t y, uintptr_t norm,
                                        uintptr_t weight, uintptr_t slope) {
  PairOutputProblem p;
  int64_t link;
  int dtype;
  std::tie(p.images, p.pairs, p.width, link, dtype) = sizes;
  p.link = static_cast<Link>(link);
  p.dtype = static_cast<DType>(dtype);
  p.y = reinterpret_cast<void*>(y);
  p.norm = reinterpret_cast<void*>(norm);
  p.weight = reinterpret_cast<void*>(weight);
  p.slope = reinterpret_cast<void*>(slope);
  return p;
}

template <class Where, class Problem>
using Run = void (*)(const Where&, Problem&);

template <class Where, Run<Where, PairHiddenProblem> moments, Run<Where, PairHiddenProblem> hidden,
          Run<Where, PairHiddenProblem> sums, Run<Where, PairHiddenProblem> backward>
void bind_pair_hidden_layer(pybind11::module_& m) {
  m.def("pair_hidden_layer", [](const Where& where, const Sizes& sizes, const BatchNormTuple& of,
                                uintptr_t a, uintptr_t c, uintptr_t norm, uintptr_t x) {
    PairHiddenProblem p = hidden_problem(sizes, a, c, norm);
    p.batch_norm = batch_norm(of);
    p.x = reinterpret_cast<void*>(x);
    moments(where, p);
    hidden(where, p);
  });
  m.def("pair_hidden_gradient",
        [](const Where& where, const Sizes& sizes, bool batch, uintptr_t a, uintptr_t c,
           uintptr_t norm, uintptr_t grad_x, uintptr_t to_a, uintptr_t to_c, uintptr_t facts,
           uintptr_t grad_a, uintptr_t grad_c) {
          PairHiddenProblem p = hidden_problem(sizes, a, c, norm);
          p.values = batch ? p.pairs() : 0;
          p.grad_x = reinterpret_cast<void*>(grad_x);
          p.to_a = reinterpret_cast<void*>(to_a);
          p.to_c = reinterpret_cast<void*>(to_c);
          p.facts = reinterpret_cast<void*>(facts);
          p.correction = p.facts;  // its first rows
          p.grad_a = reinterpret_cast<void*>(grad_a);
          p.grad_c = reinterpret_cast<void*>(grad_c);
          sums(where, p);
          backward(where, p);
        });
}

template <class Where, Run<Where, PairOutputProblem> moments, Run<Where, PairOutputProblem> output,
          Run<Where, PairOutputProblem> sums, Run<Where, PairOutputProblem> backward>
void bind_pair_output_layer(pybind11::module_& m) {
  m.def("pair_output_layer",
        [](const Where& where, const Sizes& sizes, const BatchNormTuple& of, uintptr_t y,
           uintptr_t norm, uintptr_t weight, uintptr_t bias, uintptr_t value, uintptr_t slope) {
          PairOutputProblem p = output_problem(sizes, y, norm, weight, slope);
          p.batch_norm = batch_norm(of);
          p.bias = reinterpret_cast<void*>(bias);
          p.value = reinterpret_cast<void*>(value);
          moments(where, p);
          output(where, p);
        });
  m.def("pair_output_gradient",
        [](const Where& where, const Sizes& sizes, bool batch, bool summed, uintptr_t y,
           uintptr_t norm, uintptr_t weight, uintptr_t slope, uintptr_t grad, int64_t grad_stride,
           uintptr_t facts, uintptr_t grad_y) {
          PairOutputProblem p = output_problem(sizes, y, norm, weight, slope);
          p.values = batch ? p.images * p.pairs : 0;
          p.grad = reinterpret_cast<void*>(grad);
          p.grad_stride = grad_stride;
          p.facts = reinterpret_cast<void*>(facts);
          p.correction = p.facts;
          p.grad_y = reinterpret_cast<void*>(grad_y);
          if (summed) sums(where, p);
          backward(where, p);
        });
}

template <class Where, Run<Where, UnitProblem> forward, Run<Where, UnitProblem> backward>
void bind_unit(pybind11::module_& m) {
  m.def("unit", [](const Where& where, int64_t images, int64_t dim, bool wide,
                   const RowsTuple& crops, const RowsTuple& units, uintptr_t factors) {
    UnitProblem p;
    p.images = images;
    p.dim = dim;
    p.wide = wide;
    p.crops = rows(crops);
    p.units = rows(units);
    p.factors = reinterpret_cast<void*>(factors);
    forward(where, p);
  });
  m.def("unit_backward",
        [](const Where& where, int64_t images, int64_t dim, bool wide, const RowsTuple& grad,
           const RowsTuple& units, uintptr_t factors, const RowsTuple& to) {
          UnitProblem p;
          p.images = images;
          p.dim = dim;
          p.wide = wide;
          p.grad = rows(grad);
          p.units = rows(units);
          p.crops = rows(to);
          p.factors = reinterpret_cast<void*>(factors);
          backward(where, p);
        });
}

}  // namespace logo
