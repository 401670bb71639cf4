// The planted mistakes for Python: arrays as addresses, a launch's error as its message, "" for
// none.
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "bind.h"
#include "planted.h"

namespace py = pybind11;

namespace {

// An argument as Python gives it.
template <class T>
struct FromPython {
  using Type = T;
  static T convert(T value) { return value; }
};
template <class T>
struct FromPython<T*> {
  using Type = uintptr_t;
  static T* convert(uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <class... P>
void define(py::module_& m, const char* name, cudaError_t (*function)(P...)) {
  m.def(name, [function](typename FromPython<P>::Type... arguments) {
    const cudaError_t error = function(FromPython<P>::convert(arguments)...);
    return error == cudaSuccess ? std::string() : std::string(cudaGetErrorString(error));
  });
}

}  // namespace

PYBIND11_MODULE(planted, m) {
  using namespace planted;
  bind_emulation(m);
  py::enum_<Mistake>(m, "Mistake", py::module_local())
      .value("none", Mistake::none)
      .value("no_barrier", Mistake::no_barrier)
      .value("no_warp_barrier", Mistake::no_warp_barrier)
      .value("part_of_block", Mistake::part_of_block)
      .value("early_exit", Mistake::early_exit)
      .value("wrong_kind", Mistake::wrong_kind)
      .value("part_of_warp", Mistake::part_of_warp)
      .value("not_in_mask", Mistake::not_in_mask)
      .value("wrong_count", Mistake::wrong_count)
      .value("part_of_warps", Mistake::part_of_warps)
      .value("no_wait", Mistake::no_wait)
      .value("no_commit", Mistake::no_commit)
      .value("no_fence", Mistake::no_fence)
      .value("no_init", Mistake::no_init)
      .value("too_many_bytes", Mistake::too_many_bytes)
      .value("too_few_bytes", Mistake::too_few_bytes)
      .value("wrong_parity", Mistake::wrong_parity)
      .value("misaligned", Mistake::misaligned)
      .value("filled_while_in_use", Mistake::filled_while_in_use)
      .value("wrong_fragment", Mistake::wrong_fragment);
  define(m, "block_sum", block_sum);
  define(m, "uniform_barrier", uniform_barrier);
  define(m, "producers", producers);
  define(m, "neighbours", neighbours);
  define(m, "shuffles", shuffles);
  define(m, "divided_warp", divided_warp);
  define(m, "histogram", histogram);
  define(m, "unwritten", unwritten);
  define(m, "write_at", write_at);
  define(m, "empty", empty);
  define(m, "copy_groups", copy_groups);
  define(m, "copy_in_bulk", copy_in_bulk);
  define(m, "fragments_product", fragments_product);
  define(m, "matrix_product", matrix_product);
  define(m, "unpack_pairs", unpack_pairs);
  define(m, "pack_pairs", pack_pairs);
  define(m, "clamp", clamp);
  define(m, "busy", busy);
  m.def("occupancy", [](int threads, size_t shared_bytes) {
    int blocks = -1;
    emulation::occupancy(&blocks, threads, shared_bytes);
    return blocks;
  });
}
