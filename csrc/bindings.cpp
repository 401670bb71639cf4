// Python's view of the CPU launchers, and the extension module.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>

#include "bindings.h"

namespace py = pybind11;
using namespace logo;

namespace {

// `where`: a number of threads.
class CpuCalls {
 public:
  template <class Problem>
  using Launcher = Status (*)(const Problem&);

  static constexpr char kWhere[] = "int (threads)";

  bool read_where(PyObject* from) { return read_integer(from, &threads_); }

  template <class Problem>
  bool run(Launcher<Problem> launcher, Problem& problem) {
    problem.threads = int(threads_);
    status_ = launcher(problem);
    return status_ == Status::ok;
  }

  void raise() const {
    if (status_ == Status::out_of_memory) {
      PyErr_NoMemory();
    } else {
      PyErr_SetString(PyExc_RuntimeError, "a dtype that the CPU's kernels do not know");
    }
  }

 private:
  int64_t threads_ = 1;
  Status status_ = Status::ok;
};

void bind_cpu(py::module_& m) {
  py::dict fields;
#define LOGO_BIND(name, Problem, ...) \
  bind_launcher<CpuCalls, Problem, &cpu::name>(m, fields, #name);
  LOGO_LAUNCHERS(LOGO_BIND)
  LOGO_COMPOSITES(LOGO_BIND)
#undef LOGO_BIND
  m.attr("fields") = fields;
}

constexpr std::array<std::pair<cpu::Simd, const char*>, 3> kSimds{{
    {cpu::Simd::avx512, "avx512"},
    {cpu::Simd::avx2, "avx2"},
    {cpu::Simd::portable, "portable"},
}};

}  // namespace

// Without the GIL too: calls share nothing but the chosen instruction set, an atomic, and what is
// known of each GPU, behind a mutex.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "C++ kernels; called by logo_kernels.backends, which allocates and validates.";
  bind_cpu(m);
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
  // MKL, which torch takes for products, is slow on the processors of others.
  m.attr("intel") =
#if defined(__x86_64__)
      bool(__builtin_cpu_is("intel"));
#else
      false;
#endif
  m.attr("openmp") =
#if defined(_OPENMP)
      true;
#else
      false;
#endif
}
