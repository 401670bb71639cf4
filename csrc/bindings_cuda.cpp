// Python's view of the CUDA launchers: integers in, RuntimeError out.
//
// Launches release the GIL: where a stream's queue is full they wait for the device, and what it
// waits for may be another thread's to launch.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings.h"
#include "bindings_pair.h"
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
  Status status;
  {
    py::gil_scoped_release release;
    status = launcher(problem, queue, &failure);
  }
  check(status, failure);
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
  run(&cuda::scale, p, device, stream, 0);
}

void info_nce(int device, uintptr_t stream, uintptr_t workspace, int64_t images, int64_t dim,
              const RowsTuple& global, const RowsTuple& local, const RowsTuple& positives,
              const RowsTuple& negatives, double temperature, uintptr_t temperature_at,
              double gg_weight, double lg_weight, int reduction, uintptr_t total, uintptr_t terms,
              uintptr_t lse, const RowsTuple& pull, const RowsTuple& mean) {
  InfoNCEProblem p = info_nce_problem(images, dim, global, local, positives, negatives, temperature,
                                      temperature_at, pull, mean);
  set_results(p, gg_weight, lg_weight, reduction, total, terms, lse);
  run(&cuda::info_nce, p, device, stream, workspace);
}

void info_nce_backward(int device, uintptr_t stream, uintptr_t workspace, int64_t images,
                       int64_t dim, const RowsTuple& global, const RowsTuple& local,
                       const RowsTuple& positives, double temperature, uintptr_t temperature_at,
                       const RowsTuple& upstream, const RowsTuple& pull, const RowsTuple& mean,
                       const RowsTuple& grad_global, const RowsTuple& grad_local,
                       uintptr_t grad_temperature) {
  InfoNCEProblem p = info_nce_problem(images, dim, global, local, positives, {}, temperature,
                                      temperature_at, pull, mean);
  set_gradients(p, upstream, grad_global, grad_local, grad_temperature);
  run(&cuda::info_nce_backward, p, device, stream, workspace);
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

int64_t pair_workspace_bytes(int device, int64_t width) {
  return ask(
      [&](cuda::Failure* failure) { return cuda::pair_workspace_bytes(width, device, failure); });
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

// What launchers of the pair stage are told besides their problem: device, stream and workspace.
using Place = std::tuple<int, uintptr_t, uintptr_t>;

template <class Problem, Status (*launcher)(const Problem&, const cuda::Queue&, cuda::Failure*)>
void run_at(const Place& place, Problem& problem) {
  const auto& [device, stream, workspace] = place;
  run(launcher, problem, device, stream, workspace);
}

template <Status (*launcher)(const PairHiddenProblem&, const cuda::Queue&, cuda::Failure*)>
void bind_hidden(py::module_& m, const char* name) {
  bind_pair_hidden<Place, &run_at<PairHiddenProblem, launcher>>(m, name);
}

template <Status (*launcher)(const PairOutputProblem&, const cuda::Queue&, cuda::Failure*)>
void bind_output(py::module_& m, const char* name) {
  bind_pair_output<Place, &run_at<PairOutputProblem, launcher>>(m, name);
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
  facts["blocks"] = plan.blocks;
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
  m.def("probe", &probe, "RuntimeError where kernels of this build cannot run on this device.");
  m.def("workspace_bytes", &workspace_bytes,
        "Bytes, zeros at first, that launches of `cosine` and `info_nce_backward` on one stream "
        "share.");
  m.def("shared_bytes", &shared_bytes,
        "Bytes of shared memory that a block may have on this device.");
  m.def("info_nce", &info_nce);
  m.def("info_nce_backward", &info_nce_backward);
  m.def("info_nce_workspace_bytes", &info_nce_workspace_bytes,
        "Bytes, of any contents, that a launch of `info_nce` needs for its own.");
  m.def("info_nce_plan", &info_nce_plan, py::arg("queries"), py::arg("negatives"), py::arg("dim"),
        py::arg("element_bytes"), py::arg("planes"), py::arg("multiprocessors"),
        py::arg("shared_per_block"),
        "How InfoNCE of these sizes is laid over a device (csrc/cuda/info_nce_plan.h).");
  bind_hidden<&cuda::pair_hidden_moments>(m, "pair_hidden_moments");
  bind_hidden<&cuda::pair_hidden>(m, "pair_hidden");
  bind_hidden<&cuda::pair_hidden_sums>(m, "pair_hidden_sums");
  bind_hidden<&cuda::pair_hidden_backward>(m, "pair_hidden_backward");
  bind_output<&cuda::pair_output_moments>(m, "pair_output_moments");
  bind_output<&cuda::pair_output>(m, "pair_output");
  bind_output<&cuda::pair_output_sums>(m, "pair_output_sums");
  bind_output<&cuda::pair_output_backward>(m, "pair_output_backward");
  bind_pair_hidden_layer<Place, &run_at<PairHiddenProblem, &cuda::pair_hidden_moments>,
                         &run_at<PairHiddenProblem, &cuda::pair_hidden>,
                         &run_at<PairHiddenProblem, &cuda::pair_hidden_sums>,
                         &run_at<PairHiddenProblem, &cuda::pair_hidden_backward>>(m);
  bind_pair_output_layer<Place, &run_at<PairOutputProblem, &cuda::pair_output_moments>,
                         &run_at<PairOutputProblem, &cuda::pair_output>,
                         &run_at<PairOutputProblem, &cuda::pair_output_sums>,
                         &run_at<PairOutputProblem, &cuda::pair_output_backward>>(m);
  bind_unit<Place, &run_at<UnitProblem, &cuda::unit>, &run_at<UnitProblem, &cuda::unit_backward>>(
      m);
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
