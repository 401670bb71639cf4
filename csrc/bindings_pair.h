// The pair stage's launchers as functions of Python, of either half: integers become a problem.
//
// `Where` is what a half has to be told besides the problem: backends/cpu_pairs.py and
// backends/cuda_pairs.py give it. Arrays are named by the caller; those it leaves out are null.
#pragma once

#include <pybind11/pybind11.h>

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

}  // namespace logo
