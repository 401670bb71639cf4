// Python's view of the CUDA launchers: integers in, RuntimeError out.
//
// Launches release the GIL. Where a stream's queue is full they wait for the device, which may wait
// for a launch of another thread.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <tuple>

#include "bindings.h"
#include "cuda/image_plan.h"
#include "cuda/info_nce_plan.h"

namespace py = pybind11;

namespace logo {
namespace {

// `where`: (device, stream, workspace), addresses the last two.
class CudaCalls {
 public:
  template <class Problem>
  using Launcher = Status (*)(const Problem&, const cuda::Queue&, cuda::Failure*);

  static constexpr char kWhere[] = "tuple (device, stream, workspace)";

  bool read_where(PyObject* from) {
    if (!PyTuple_Check(from) || PyTuple_GET_SIZE(from) != 3) return false;
    int64_t device;
    const bool ok = read_integer(PyTuple_GET_ITEM(from, 0), &device) &&
                    read_address(PyTuple_GET_ITEM(from, 1), &queue_.stream) &&
                    read_address(PyTuple_GET_ITEM(from, 2), &queue_.workspace);
    queue_.device = int(device);
    return ok;
  }

  template <class Problem>
  bool run(Launcher<Problem> launcher, const Problem& problem) {
    return launcher(problem, queue_, &failure_) == Status::ok;
  }

  void raise() const { PyErr_SetString(PyExc_RuntimeError, failure_.text); }

 private:
  cuda::Queue queue_;
  cuda::Failure failure_;
};

void check(Status status, const cuda::Failure& failure) {
  if (status != Status::ok) throw std::runtime_error(failure.text);
}

// Rows in the form that read_rows takes.
using RowsTuple = std::tuple<uintptr_t, int, int64_t, int64_t, int64_t, int64_t>;

Rows rows(const RowsTuple& tuple) {
  const auto& [address, dtype, count, image, crop, element] = tuple;
  return {reinterpret_cast<void*>(address), static_cast<DType>(dtype), count, image, crop, element};
}

// One for each of kMaxGradients.
using ThreeRows = std::tuple<RowsTuple, RowsTuple, RowsTuple>;

void scale(int device, uintptr_t stream, int64_t images, int64_t dim, const ThreeRows& gradients,
           const RowsTuple& upstream, const ThreeRows& row_scales) {
  const auto& [first, second, third] = gradients;
  const auto& [of_first, of_second, of_third] = row_scales;
  const ScaleProblem p{images,
                       dim,
                       {rows(first), rows(second), rows(third)},
                       rows(upstream),
                       {rows(of_first), rows(of_second), rows(of_third)}};
  const cuda::Queue queue{device, reinterpret_cast<void*>(stream), nullptr};
  cuda::Failure failure;
  Status status;
  {
    py::gil_scoped_release release;
    status = cuda::scale(p, queue, &failure);
  }
  check(status, failure);
}

// A number of bytes, which is positive unless the device could not be asked.
template <class Question>
int64_t ask(const Question& question) {
  cuda::Failure failure;
  const int64_t answer = question(&failure);
  check(answer > 0 ? Status::ok : Status::launch_failed, failure);
  return answer;
}

void probe(int device) {
  cuda::Failure failure;
  check(cuda::probe(device, &failure), failure);
}

int64_t workspace_bytes(int device) {
  return ask([&](cuda::Failure* failure) { return cuda::workspace_bytes(device, failure); });
}

int64_t shared_bytes(int device) {
  return ask([&](cuda::Failure* failure) { return cuda::shared_bytes(device, failure); });
}

int64_t info_nce_workspace_bytes(int device, int64_t queries, int64_t negatives, int64_t dim,
                                 int owed, int kept) {
  return ask([&](cuda::Failure* failure) {
    return cuda::info_nce_workspace_bytes(queries, negatives, dim, static_cast<DType>(owed),
                                          static_cast<DType>(kept), device, failure);
  });
}

int64_t affinity_workspace_bytes(int device, int64_t width) {
  return ask([&](cuda::Failure* failure) {
    return cuda::affinity_workspace_bytes(width, device, failure);
  });
}

py::dict info_nce_plan(int64_t queries, int64_t negatives, int64_t dim, int element_bytes,
                       int planes, int multiprocessors, int64_t shared_per_block) {
  const cuda::InfoNCEPlan plan = cuda::info_nce_plan(queries, negatives, dim, element_bytes, planes,
                                                     {multiprocessors, shared_per_block});
  py::dict facts;
  facts["threads"] = plan.threads;
  facts["rows"] = plan.rows;
  facts["tile"] = plan.tile;
  facts["stages"] = plan.stages;
  facts["resident"] = plan.resident;
  facts["chunk"] = plan.chunk;
  facts["chunks"] = plan.chunks;
  facts["splits"] = plan.splits;
  facts["blocks"] = plan.blocks();
  facts["shared_bytes"] = plan.shared_bytes;
  facts["workspace_bytes"] = plan.workspace_bytes;
  return facts;
}

py::dict plan(int rows, int64_t dim, int element_bytes, int64_t shared_per_block) {
  cuda::Limits limits{};
  limits.shared_per_block = shared_per_block;
  const cuda::ImagePlan plan = cuda::plan_for(rows, dim, element_bytes, limits);
  py::dict facts;
  facts["threads"] = plan.threads;
  facts["stages"] = plan.stages;
  facts["chunk"] = plan.chunk;
  facts["chunks"] = plan.chunks;
  facts["slices"] = plan.slices;
  facts["blocks"] = plan.blocks;
  facts["stage_bytes"] = plan.stage_bytes;
  facts["shared_bytes"] = plan.shared_bytes;
  return facts;
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::dict fields;
#define LOGO_BIND(name, Problem, ...) \
  bind_launcher<CudaCalls, Problem, &cuda::name>(m, fields, #name);
  LOGO_LAUNCHERS(LOGO_BIND)
  LOGO_COMPOSITES(LOGO_BIND)
#undef LOGO_BIND
  m.attr("fields") = fields;
  m.def("scale", &scale);
  m.def("probe", &probe, "RuntimeError where kernels of this build cannot run on this device.");
  m.def("workspace_bytes", &workspace_bytes,
        "Bytes, zeros at first, that launches of `cosine` and `info_nce_backward` on one stream "
        "share.");
  m.def("shared_bytes", &shared_bytes,
        "Bytes of shared memory that a block may have on this device.");
  m.def("info_nce_workspace_bytes", &info_nce_workspace_bytes,
        "Bytes, of any contents, that a launch of `info_nce` needs for its own.");
  m.def("info_nce_plan", &info_nce_plan, py::arg("queries"), py::arg("negatives"), py::arg("dim"),
        py::arg("element_bytes"), py::arg("planes"), py::arg("multiprocessors"),
        py::arg("shared_per_block"),
        "How InfoNCE of these sizes is laid over a device (csrc/cuda/info_nce_plan.h).");
  m.def("affinity_workspace_bytes", &affinity_workspace_bytes,
        "Bytes, of any contents, that launches of the affinity's moments and sums on one stream "
        "share.");
  m.def("plan", &plan, py::arg("rows"), py::arg("dim"), py::arg("element_bytes"),
        py::arg("shared_per_block"),
        "How images of these sizes are laid over a device (csrc/cuda/image_plan.h); also without "
        "one.");
  m.attr("architectures") = cuda::architectures();
  m.attr("max_rows") = cuda::max_rows();
}

}  // namespace logo
