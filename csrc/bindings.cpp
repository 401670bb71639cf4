// Python's view of the CPU launchers: integers in, exceptions out, the GIL released in between.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>

#include "bindings.h"

namespace py = pybind11;
using namespace logo;

namespace {

void check(Status status) {
  if (status == Status::out_of_memory) throw std::bad_alloc();  // MemoryError
}

void cosine(int64_t images, int64_t dim, const RowsTuple& global, const RowsTuple& local,
            const RowsTuple& targets, const RowsTuple& features, double gg_weight, double lg_weight,
            double ll_weight, bool repulsion, int reduction, bool fp64,
            const RowsTuple& grad_global, const RowsTuple& grad_local,
            const RowsTuple& grad_features, uintptr_t row_scale, uintptr_t total, uintptr_t terms,
            int threads) {
  CosineProblem p = cosine_problem(images, dim, global, local, targets, features, gg_weight,
                                   lg_weight, ll_weight, repulsion, reduction, fp64, grad_global,
                                   grad_local, grad_features, row_scale, total, terms);
  p.threads = threads;
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::cosine(p);
  }
  check(status);
}

void similarity(int64_t images, int64_t dim, const RowsTuple& a, const RowsTuple& b,
                const RowsTuple& cosines, int threads) {
  SimilarityProblem p = similarity_problem(images, dim, a, b, cosines);
  p.threads = threads;
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::similarity(p);
  }
  check(status);
}

void similarity_backward(int64_t images, int64_t dim, const RowsTuple& upstream, const RowsTuple& a,
                         const RowsTuple& b, const RowsTuple& grad_a, const RowsTuple& grad_b,
                         int threads) {
  SimilarityProblem p = similarity_problem(images, dim, a, b, upstream);
  p.threads = threads;
  p.grad_a = rows(grad_a);
  p.grad_b = rows(grad_b);
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::similarity_backward(p);
  }
  check(status);
}

void info_nce(int64_t images, int64_t dim, const RowsTuple& global, const RowsTuple& local,
              const RowsTuple& positives, const RowsTuple& negatives, double temperature,
              const RowsTuple& pull, const RowsTuple& mean, double gg_weight, double lg_weight,
              int reduction, uintptr_t total, uintptr_t terms, uintptr_t lse, int threads) {
  InfoNCEProblem p = info_nce_problem(images, dim, global, local, positives, negatives, temperature,
                                      0, pull, mean);
  set_results(p, gg_weight, lg_weight, reduction, total, terms, lse);
  p.threads = threads;
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::info_nce(p);
  }
  check(status);
}

void info_nce_backward(int64_t images, int64_t dim, const RowsTuple& global, const RowsTuple& local,
                       const RowsTuple& positives, double temperature, const RowsTuple& pull,
                       const RowsTuple& mean, const RowsTuple& upstream,
                       const RowsTuple& grad_global, const RowsTuple& grad_local,
                       uintptr_t grad_temperature, int threads) {
  InfoNCEProblem p = info_nce_problem(images, dim, global, local, positives, RowsTuple{},
                                      temperature, 0, pull, mean);
  set_gradients(p, upstream, grad_global, grad_local, grad_temperature);
  p.threads = threads;
  Status status;
  {
    py::gil_scoped_release release;
    status = cpu::info_nce_backward(p);
  }
  check(status);
}

constexpr std::array<std::pair<cpu::Simd, const char*>, 3> kSimds{{
    {cpu::Simd::avx512, "avx512"},
    {cpu::Simd::avx2, "avx2"},
    {cpu::Simd::portable, "portable"},
}};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "C++ kernels; called by logo_kernels.backends, which allocates and validates.";
  m.def("cosine", &cosine);
  m.def("similarity", &similarity);
  m.def("similarity_backward", &similarity_backward);
  m.def("info_nce", &info_nce);
  m.def("info_nce_backward", &info_nce_backward);
  bind_pair_stage(m);
  m.def(
      "simds",
      [] {
        py::list names;
        for (const auto& [simd, name] : kSimds) {
          if (cpu::has_simd(simd)) names.append(name);
        }
        return names;
      },
      "Instruction sets that can be used here, widest first.");
  m.def("current_simd", [] {
    for (const auto& [simd, name] : kSimds) {
      if (simd == cpu::current_simd()) return name;
    }
    return "unknown";
  });
  m.def(
      "use_simd",
      [](const std::string& wanted) {
        for (const auto& [simd, name] : kSimds) {
          if (wanted == name && cpu::has_simd(simd)) return cpu::use_simd(simd);
        }
        throw std::invalid_argument("this processor cannot run " + wanted);
      },
      "For tests: the instruction set of all later calls.");
  py::module_ of_cuda = m.def_submodule("cuda", "The CUDA kernels, if the build found nvcc.");
  bind_cuda(of_cuda);
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
}
