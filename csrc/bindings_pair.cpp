// Python's view of the CPU's pair stage: backends/cpu_pairs.py names the arrays of each launcher.
#include <pybind11/pybind11.h>

#include "bindings.h"

namespace py = pybind11;
using namespace logo;

namespace {

void check(Status status) {
  if (status == Status::out_of_memory) throw std::bad_alloc();  // MemoryError
}

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

using HiddenLauncher = Status (*)(const PairHiddenProblem&);
using OutputLauncher = Status (*)(const PairOutputProblem&);

template <HiddenLauncher launch>
void hidden(int64_t images, int64_t crops, int64_t width, int64_t roll, int dtype, int threads,
            uintptr_t a, uintptr_t c, uintptr_t norm, uintptr_t grad_x, uintptr_t correction,
            uintptr_t moments, uintptr_t x, uintptr_t to_a, uintptr_t to_c, uintptr_t sums,
            uintptr_t grad_a, uintptr_t grad_c) {
  PairHiddenProblem p;
  p.images = images;
  p.crops = crops;
  p.width = width;
  p.roll = roll;
  p.dtype = static_cast<DType>(dtype);
  p.threads = threads;
  p.a = address(a);
  p.c = address(c);
  p.norm = address(norm);
  p.grad_x = address(grad_x);
  p.correction = address(correction);
  p.moments = address(moments);
  p.x = address(x);
  p.to_a = address(to_a);
  p.to_c = address(to_c);
  p.sums = address(sums);
  p.grad_a = address(grad_a);
  p.grad_c = address(grad_c);
  py::gil_scoped_release release;
  check(launch(p));
}

template <OutputLauncher launch>
void output(int64_t images, int64_t pairs, int64_t width, int link, int dtype, int threads,
            uintptr_t y, uintptr_t norm, uintptr_t weight, uintptr_t bias, uintptr_t grad,
            uintptr_t correction, uintptr_t moments, uintptr_t value, uintptr_t slope,
            uintptr_t sums, uintptr_t grad_y) {
  PairOutputProblem p;
  p.images = images;
  p.pairs = pairs;
  p.width = width;
  p.link = static_cast<Link>(link);
  p.dtype = static_cast<DType>(dtype);
  p.threads = threads;
  p.y = address(y);
  p.norm = address(norm);
  p.weight = address(weight);
  p.bias = address(bias);
  p.grad = address(grad);
  p.correction = address(correction);
  p.moments = address(moments);
  p.value = address(value);
  p.slope = address(slope);
  p.sums = address(sums);
  p.grad_y = address(grad_y);
  py::gil_scoped_release release;
  check(launch(p));
}

template <HiddenLauncher launch>
void bind_hidden(py::module_& m, const char* name) {
  m.def(name, &hidden<launch>, py::arg("images"), py::arg("crops"), py::arg("width"),
        py::arg("roll"), py::arg("dtype"), py::arg("threads"), py::kw_only(), py::arg("a") = 0,
        py::arg("c") = 0, py::arg("norm") = 0, py::arg("grad_x") = 0, py::arg("correction") = 0,
        py::arg("moments") = 0, py::arg("x") = 0, py::arg("to_a") = 0, py::arg("to_c") = 0,
        py::arg("sums") = 0, py::arg("grad_a") = 0, py::arg("grad_c") = 0);
}

template <OutputLauncher launch>
void bind_output(py::module_& m, const char* name) {
  m.def(name, &output<launch>, py::arg("images"), py::arg("pairs"), py::arg("width"),
        py::arg("link"), py::arg("dtype"), py::arg("threads"), py::kw_only(), py::arg("y") = 0,
        py::arg("norm") = 0, py::arg("weight") = 0, py::arg("bias") = 0, py::arg("grad") = 0,
        py::arg("correction") = 0, py::arg("moments") = 0, py::arg("value") = 0,
        py::arg("slope") = 0, py::arg("sums") = 0, py::arg("grad_y") = 0);
}

}  // namespace

namespace logo {

void bind_pair_stage(py::module_& m) {
  bind_hidden<&cpu::pair_hidden_moments>(m, "pair_hidden_moments");
  bind_hidden<&cpu::pair_hidden>(m, "pair_hidden");
  bind_hidden<&cpu::pair_hidden_sums>(m, "pair_hidden_sums");
  bind_hidden<&cpu::pair_hidden_backward>(m, "pair_hidden_backward");
  bind_output<&cpu::pair_output_moments>(m, "pair_output_moments");
  bind_output<&cpu::pair_output>(m, "pair_output");
  bind_output<&cpu::pair_output_sums>(m, "pair_output_sums");
  bind_output<&cpu::pair_output_backward>(m, "pair_output_backward");
}

}  // namespace logo
