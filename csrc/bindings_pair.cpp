// Python's view of the CPU's pair stage.
#include <new>

#include "bindings_pair.h"

#include "bindings.h"

namespace logo {
namespace {

template <class Problem, Status (*launcher)(const Problem&)>
void run(const int& threads, Problem& problem) {
  problem.threads = threads;
  pybind11::gil_scoped_release release;
  if (launcher(problem) == Status::out_of_memory) throw std::bad_alloc();  // MemoryError
}

template <Status (*launcher)(const PairHiddenProblem&)>
void bind_hidden(pybind11::module_& m, const char* name) {
  bind_pair_hidden<int, &run<PairHiddenProblem, launcher>>(m, name);
}

template <Status (*launcher)(const PairOutputProblem&)>
void bind_output(pybind11::module_& m, const char* name) {
  bind_pair_output<int, &run<PairOutputProblem, launcher>>(m, name);
}

}  // namespace

void bind_pair_stage(pybind11::module_& m) {
  bind_hidden<&cpu::pair_hidden_moments>(m, "pair_hidden_moments");
  bind_hidden<&cpu::pair_hidden>(m, "pair_hidden");
  bind_hidden<&cpu::pair_hidden_sums>(m, "pair_hidden_sums");
  bind_hidden<&cpu::pair_hidden_backward>(m, "pair_hidden_backward");
  bind_output<&cpu::pair_output_moments>(m, "pair_output_moments");
  bind_output<&cpu::pair_output>(m, "pair_output");
  bind_output<&cpu::pair_output_sums>(m, "pair_output_sums");
  bind_output<&cpu::pair_output_backward>(m, "pair_output_backward");
  bind_pair_hidden_layer<int, &run<PairHiddenProblem, &cpu::pair_hidden_moments>,
                         &run<PairHiddenProblem, &cpu::pair_hidden>,
                         &run<PairHiddenProblem, &cpu::pair_hidden_sums>,
                         &run<PairHiddenProblem, &cpu::pair_hidden_backward>>(m);
  bind_pair_output_layer<int, &run<PairOutputProblem, &cpu::pair_output_moments>,
                         &run<PairOutputProblem, &cpu::pair_output>,
                         &run<PairOutputProblem, &cpu::pair_output_sums>,
                         &run<PairOutputProblem, &cpu::pair_output_backward>>(m);
  bind_unit<int, &run<UnitProblem, &cpu::unit>, &run<UnitProblem, &cpu::unit_backward>>(m);
}

}  // namespace logo
