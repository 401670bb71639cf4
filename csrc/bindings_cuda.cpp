// Python's view of the CUDA launchers: integers in, RuntimeError out.
//
// The GIL is kept: a launch takes microseconds and waits for nothing.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings.h"
#include "cuda/info_nce_plan.h"
#include "cuda/plan.h"

namespace py = pybind11;

namespace logo {
namespace {

void check(Status status, const cuda::Failure& failure) {
  if (status != Status::ok) throw std::runtime_error(failure.text);
}

template <class Problem>
void run(Status (*launcher)(const Problem&, const cuda::Queue&, cuda::Failure*),
         const Problem& problem, int device, uintptr_t stream, uintptr_t workspace) {
  cuda::Failure failure;
  const cuda::Queue queue{device, reinterpret_cast<void*>(stream),
                          reinterpret_cast<void*>(workspace)};
  check(launcher(problem, queue, &failure), failure);
}

void cosine(int device, uintptr_t stream, uintptr_t workspace, int64_t images, int64_t dim,
            const RowsTuple& global, const RowsTuple& local, const RowsTuple& targets,
            const RowsTuple& features, double gg_weight, double lg_weight, double ll_weight,
            bool repulsion, int reduction, const RowsTuple& grad_global,
            const RowsTuple& grad_local, const RowsTuple& grad_features, uintptr_t row_scale,
            uintptr_t total, uintptr_t terms) {
  run(&cuda::cosine,
      cosine_problem(images, dim, global, local, targets, features, gg_weight, lg_weight, ll_weight,
                     repulsion, reduction, false, grad_global, grad_local, grad_features, row_scale,
                     total, terms),
      device, stream, workspace);
}

void similarity(int device, uintptr_t stream, int64_t images, int64_t dim, const RowsTuple& a,
                const RowsTuple& b, const RowsTuple& cosines) {
  run(&cuda::similarity, similarity_problem(images, dim, a, b, cosines), device, stream, 0);
}

void similarity_backward(int device, uintptr_t stream, int64_t images, int64_t dim,
                         const RowsTuple& upstream, const RowsTuple& a, const RowsTuple& b,
                         const RowsTuple& grad_a, const RowsTuple& grad_b) {
  SimilarityProblem p = similarity_problem(images, dim, a, b, upstream);
  p.grad_a = rows(grad_a);
  p.grad_b = rows(grad_b);
  run(&cuda::similarity_backward, p, device, stream, 0);
}

void scale(int device, uintptr_t stream, int64_t images, int64_t dim, const RowsTuple& gradient,
           const RowsTuple& upstream, const RowsTuple& row_scale) {
  const ScaleProblem p{images, dim, rows(gradient), rows(upstream), rows(row_scale)};
  run(&cuda::scale, p, device, stream, 0);
}

void info_nce(int device, uintptr_t stream, uintptr_t workspace, int64_t dim,
              const RowsTuple& queries, const RowsTuple& negatives, double temperature, int owed,
              int64_t own_queries, int64_t own_negatives, uintptr_t lse, uintptr_t mean) {
  run(&cuda::info_nce,
      info_nce_problem(dim, queries, negatives, temperature, owed, own_queries, own_negatives, lse,
                       mean),
      device, stream, workspace);
}

int64_t info_nce_workspace_bytes(int device, int64_t dim, const RowsTuple& queries,
                                 const RowsTuple& negatives, int owed) {
  cuda::Failure failure;
  const int64_t bytes = cuda::info_nce_workspace_bytes(
      info_nce_problem(dim, queries, negatives, 1, owed, 0, 0, 0, 0), device, &failure);
  check(bytes > 0 ? Status::ok : Status::launch_failed, failure);
  return bytes;
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

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

template <class Problem>
using Launcher = Status (*)(const Problem&, const cuda::Queue&, cuda::Failure*);

template <Launcher<PairHiddenProblem> launch>
void pair_hidden(int device, uintptr_t stream, uintptr_t workspace, int64_t images, int64_t crops,
                 int64_t width, int64_t roll, int dtype, uintptr_t a, uintptr_t c, uintptr_t norm,
                 uintptr_t grad_x, uintptr_t correction, uintptr_t moments, uintptr_t x,
                 uintptr_t to_a, uintptr_t to_c, uintptr_t sums, uintptr_t grad_a,
                 uintptr_t grad_c) {
  PairHiddenProblem p;
  p.images = images;
  p.crops = crops;
  p.width = width;
  p.roll = roll;
  p.dtype = static_cast<DType>(dtype);
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
  run(launch, p, device, stream, workspace);
}

template <Launcher<PairOutputProblem> launch>
void pair_output(int device, uintptr_t stream, uintptr_t workspace, int64_t images, int64_t pairs,
                 int64_t width, int link, int dtype, uintptr_t y, uintptr_t norm, uintptr_t weight,
                 uintptr_t bias, uintptr_t grad, uintptr_t correction, uintptr_t moments,
                 uintptr_t value, uintptr_t slope, uintptr_t sums, uintptr_t grad_y) {
  PairOutputProblem p;
  p.images = images;
  p.pairs = pairs;
  p.width = width;
  p.link = static_cast<Link>(link);
  p.dtype = static_cast<DType>(dtype);
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
  run(launch, p, device, stream, workspace);
}

template <Launcher<PairHiddenProblem> launch>
void bind_pair_hidden(py::module_& m, const char* name) {
  m.def(name, &pair_hidden<launch>, py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("images"), py::arg("crops"), py::arg("width"), py::arg("roll"), py::arg("dtype"),
        py::kw_only(), py::arg("a") = 0, py::arg("c") = 0, py::arg("norm") = 0,
        py::arg("grad_x") = 0, py::arg("correction") = 0, py::arg("moments") = 0, py::arg("x") = 0,
        py::arg("to_a") = 0, py::arg("to_c") = 0, py::arg("sums") = 0, py::arg("grad_a") = 0,
        py::arg("grad_c") = 0);
}

template <Launcher<PairOutputProblem> launch>
void bind_pair_output(py::module_& m, const char* name) {
  m.def(name, &pair_output<launch>, py::arg("device"), py::arg("stream"), py::arg("workspace"),
        py::arg("images"), py::arg("pairs"), py::arg("width"), py::arg("link"), py::arg("dtype"),
        py::kw_only(), py::arg("y") = 0, py::arg("norm") = 0, py::arg("weight") = 0,
        py::arg("bias") = 0, py::arg("grad") = 0, py::arg("correction") = 0, py::arg("moments") = 0,
        py::arg("value") = 0, py::arg("slope") = 0, py::arg("sums") = 0, py::arg("grad_y") = 0);
}

int64_t pair_workspace_bytes(int device, int64_t width) {
  cuda::Failure failure;
  const int64_t bytes = cuda::pair_workspace_bytes(width, device, &failure);
  check(bytes > 0 ? Status::ok : Status::launch_failed, failure);
  return bytes;
}

int64_t ask(int64_t (*question)(int, cuda::Failure*), int device) {
  cuda::Failure failure;
  const int64_t answer = question(device, &failure);
  check(answer > 0 ? Status::ok : Status::launch_failed, failure);
  return answer;
}

py::dict plan(int rows, int64_t dim, int element_bytes, int64_t shared_per_block) {
  cuda::Limits limits{};
  limits.shared_per_block = shared_per_block;
  const cuda::Plan plan = cuda::plan_for(rows, dim, element_bytes, limits);
  py::dict facts;
  facts["threads"] = plan.threads;
  facts["stages"] = plan.stages;
  facts["chunk"] = plan.chunk;
  facts["chunks"] = plan.chunks;
  facts["slices"] = plan.slices;
  facts["stage_bytes"] = plan.stage_bytes;
  facts["shared_bytes"] = plan.shared_bytes;
  return facts;
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cosine", &cosine);
  m.def("similarity", &similarity);
  m.def("similarity_backward", &similarity_backward);
  m.def("scale", &scale);
  m.def(
      "workspace_bytes", [](int device) { return ask(&cuda::workspace_bytes, device); },
      "Bytes, zeros at first, that launches of `cosine` on one stream share.");
  m.def(
      "shared_bytes", [](int device) { return ask(&cuda::shared_bytes, device); },
      "Bytes of shared memory that a block may have on this device.");
  m.def("info_nce", &info_nce);
  m.def("info_nce_workspace_bytes", &info_nce_workspace_bytes,
        "Bytes, of any contents, that a launch of `info_nce` needs for its own.");
  m.def("info_nce_plan", &info_nce_plan, py::arg("queries"), py::arg("negatives"), py::arg("dim"),
        py::arg("element_bytes"), py::arg("planes"), py::arg("multiprocessors"),
        py::arg("shared_per_block"),
        "How InfoNCE of these sizes is laid over a device (csrc/cuda/info_nce_plan.h).");
  bind_pair_hidden<&cuda::pair_hidden_moments>(m, "pair_hidden_moments");
  bind_pair_hidden<&cuda::pair_hidden>(m, "pair_hidden");
  bind_pair_hidden<&cuda::pair_hidden_sums>(m, "pair_hidden_sums");
  bind_pair_hidden<&cuda::pair_hidden_backward>(m, "pair_hidden_backward");
  bind_pair_output<&cuda::pair_output_moments>(m, "pair_output_moments");
  bind_pair_output<&cuda::pair_output>(m, "pair_output");
  bind_pair_output<&cuda::pair_output_sums>(m, "pair_output_sums");
  bind_pair_output<&cuda::pair_output_backward>(m, "pair_output_backward");
  m.def("pair_workspace_bytes", &pair_workspace_bytes,
        "Bytes, of any contents, that launches of the pair stage's moments and sums on one stream "
        "share.");
  m.def("plan", &plan, py::arg("rows"), py::arg("dim"), py::arg("element_bytes"),
        py::arg("shared_per_block"),
        "How images of these sizes are laid over a device (csrc/cuda/plan.h); also without one.");
  m.attr("architectures") = cuda::architectures();
  m.attr("max_rows") = cuda::max_rows();
}

}  // namespace logo
