// Runs every kernel on tensors of exactly the bytes that they need. Built with AddressSanitizer, so
// that a read or write of one byte beyond them ends the program.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "emulation/run.h"
#include "logo/dtypes.h"
#include "logo/operations.h"

using namespace logo;

namespace {

enum class Layout { contiguous, view_major, every_second };

// [images, count, dim], its first element `offset` elements into its allocation.
class Tensor {
 public:
  Tensor(DType dtype, int64_t images, int64_t count, int64_t dim, Layout layout, int offset) {
    const int64_t step = layout == Layout::every_second ? 2 : 1;
    const int64_t rows = images * count, bytes = dtype_bytes(dtype);
    const int64_t elements = offset + (rows * dim - 1) * step + 1;
    memory_.reset(new unsigned char[elements * bytes]);
    unsigned char* const first = memory_.get() + offset * bytes;
    const bool view_major = layout == Layout::view_major;
    rows_ = {first,
             dtype,
             count,
             (view_major ? 1 : count) * dim * step,
             (view_major ? images : 1) * dim * step,
             step};
    for (int64_t k = 0; k < rows * dim; ++k) {
      const float value = float(int(k * 2654435761u >> 20) % 200 - 100) / 64;
      unsigned char* const at = first + k * step * bytes;
      switch (dtype) {
        case DType::f32: from_float(value, reinterpret_cast<float*>(at)); break;
        case DType::bf16: from_float(value, reinterpret_cast<bf16*>(at)); break;
        default: from_float(value, reinterpret_cast<f16*>(at));
      }
    }
  }

  const Rows& rows() const { return rows_; }

 private:
  std::unique_ptr<unsigned char[]> memory_;
  Rows rows_;
};

void check(Status status, const cuda::Failure& failure) {
  if (status == Status::ok) return;
  fprintf(stderr, "%s\n", failure.text);
  exit(2);
}

// Crops of an InfoNCE, 0 of a kind: absent; K negatives, 0: those of the batch.
struct Contrast {
  int64_t images, globals, locals, positives, negatives, dim;
  bool own_first = false;
};

// Forward and backward, with exactly the workspace that is asked for.
void run_info_nce(const Contrast& c, DType owed, DType kept, Layout layout, int offset,
                  Reduction reduction, void* zeros) {
  const int64_t crops = c.globals + c.locals, queries = c.images * crops;
  const auto tensor = [&](DType dtype, int64_t count) {
    return Tensor(dtype, c.images, count > 0 ? count : 1, c.dim, layout, offset);
  };
  // Gradients are dense over D.
  const auto gradient = [&](int64_t count) {
    return Tensor(owed, c.images, count > 0 ? count : 1, c.dim,
                  layout == Layout::every_second ? Layout::contiguous : layout, offset);
  };
  const auto dense = [&](int64_t count, int64_t dim) {
    return Tensor(DType::f32, c.images, count, dim, Layout::contiguous, 0);
  };
  const Tensor x = tensor(owed, c.globals), y = tensor(owed, c.locals);
  const Tensor gx = gradient(c.globals), gy = gradient(c.locals);
  const Tensor k = tensor(kept, c.positives);
  const Tensor n(kept, 1, c.negatives > 0 ? c.negatives : 1, c.dim,
                 layout == Layout::view_major ? Layout::contiguous : layout, offset);
  const Tensor pull = dense(crops, c.positives), mean = dense(crops, c.dim);
  const bool pairs = reduction == Reduction::pairs, none = reduction == Reduction::none;
  const int64_t totals = pairs ? queries * c.positives : none ? c.images : 1;
  const std::unique_ptr<float[]> total(new float[totals]), terms(new float[2 * totals]);
  const std::unique_ptr<float[]> lse(new float[queries]), tau(new float[1]{0.5f});
  const std::unique_ptr<float[]> grad_tau(new float[1]);
  InfoNCEProblem p;
  p.images = c.images;
  p.dim = c.dim;
  if (c.globals > 0) {
    p.global_crops = x.rows();
    p.grad_global = gx.rows();
  }
  if (c.locals > 0) {
    p.local_crops = y.rows();
    p.grad_local = gy.rows();
  }
  p.positives = k.rows();
  if (c.negatives > 0) p.negatives = {n.rows()};
  p.own_first = c.own_first;
  p.temperature_tensor = tau.get();
  p.reduction = reduction;
  p.total = total.get();
  p.terms = pairs ? nullptr : terms.get();
  p.lse = lse.get();
  p.pull = pull.rows();
  p.mean = mean.rows();
  cuda::Failure failure;
  const int64_t bytes = cuda::info_nce_workspace_bytes(
      queries, c.negatives > 0 ? c.negatives : c.images * c.positives, c.dim, owed, kept, 0,
      &failure);
  check(bytes > 0 ? Status::ok : Status::launch_failed, failure);
  const std::unique_ptr<unsigned char[]> workspace(new unsigned char[bytes]);
  check(cuda::info_nce(p, {0, nullptr, workspace.get()}, &failure), failure);
  p.upstream = {{total.get(), DType::f32, 1, none ? 1 : 0, 0, 0}};
  if (pairs) p.upstream = {{total.get(), DType::f32, crops, crops * c.positives, c.positives, 1}};
  p.grad_temperature = grad_tau.get();
  check(cuda::info_nce_backward(p, {0, nullptr, zeros}, &failure), failure);
  if (!std::isfinite(total[totals - 1]) || !std::isfinite(grad_tau[0])) {
    fprintf(stderr, "the loss or the temperature's gradient is not finite\n");
    exit(3);
  }
}

// Gives a layer's problem its batch norm, by its batch or by constants; the running statistics are
// [2, width].
template <class Problem>
void set_norm(Problem* p, const Tensor& weight, const Tensor& running, int64_t* batches,
              bool batch) {
  p->norm_weight = p->norm_bias = weight.rows().data;
  p->batch = batch;
  p->running_mean = running.rows().data;
  p->running_var = static_cast<float*>(running.rows().data) + running.rows().image_stride / 2;
  p->batches = batches;
  p->momentum = -1;
  p->eps = 20;  // these variances are of either sign
}

// The affinity's kernels by themselves and as layers, on arrays that begin `offset` elements into
// theirs.
void run_affinity(int64_t images, int64_t crops, int64_t width, DType dtype, int offset) {
  const int64_t pairs = crops * (crops - 1), rows = images * crops;
  const auto tensor = [&](int64_t count) {
    return Tensor(dtype, 1, count, width, Layout::contiguous, offset);
  };
  const auto numbers = [](int64_t count) {
    return Tensor(DType::f32, 1, 1, count, Layout::contiguous, 0);
  };
  cuda::Failure failure;
  const int64_t bytes = cuda::affinity_workspace_bytes(width, 0, &failure);
  check(bytes > 0 ? Status::ok : Status::launch_failed, failure);
  const std::unique_ptr<unsigned char[]> workspace(new unsigned char[bytes]);
  const cuda::Queue queue{0, nullptr, workspace.get()};
  const Tensor facts = numbers(5 * width), more_facts = numbers(6 * width);
  const Tensor running = numbers(2 * width);
  int64_t batches = 0;
  const Tensor norm = numbers(4 * width), correction = numbers(2 * width);
  const Tensor results = numbers(2 * width), at_pairs = tensor(images * pairs);

  const Tensor a = tensor(rows), c = tensor(rows), grad_a = tensor(rows), grad_c = tensor(rows);
  const Tensor to_a = numbers(rows * width), to_c = numbers(rows * width);
  AffinityHiddenProblem h;
  h.images = images;
  h.crops = crops;
  h.width = width;
  h.roll = images - 1;
  h.dtype = dtype;
  h.a = a.rows().data;
  h.c = c.rows().data;
  h.norm = norm.rows().data;
  h.correction = correction.rows().data;
  h.moments = h.sums = results.rows().data;
  h.x = at_pairs.rows().data;
  h.grad_x = at_pairs.rows().data;
  h.to_a = to_a.rows().data;
  h.to_c = to_c.rows().data;
  h.grad_a = grad_a.rows().data;
  h.grad_c = grad_c.rows().data;
  for (const auto launch : {cuda::affinity_hidden_moments, cuda::affinity_hidden,
                            cuda::affinity_hidden_sums, cuda::affinity_hidden_backward}) {
    check(launch(h, queue, &failure), failure);
  }
  const Tensor weight = numbers(width);
  h.facts = facts.rows().data;
  for (const bool batch : {false, true}) {
    set_norm(&h, weight, running, &batches, batch);
    check(cuda::affinity_hidden_layer(h, queue, &failure), failure);
    check(cuda::affinity_hidden_gradient(h, queue, &failure), failure);
  }

  const Tensor bias = numbers(1), grad = numbers(images);
  const Tensor value = numbers(images), slope = numbers(images * pairs);
  const Tensor grad_y = tensor(images * pairs);
  AffinityOutputProblem o;
  o.images = images;
  o.pairs = pairs;
  o.width = width;
  o.link = Link::softplus;
  o.dtype = dtype;
  o.y = at_pairs.rows().data;
  o.norm = norm.rows().data;
  o.last = weight.rows().data;
  o.last_bias = bias.rows().data;
  o.grad = grad.rows().data;
  o.grad_stride = 1;
  o.correction = correction.rows().data;
  o.moments = o.sums = results.rows().data;
  o.value = value.rows().data;
  o.slope = slope.rows().data;
  o.grad_y = grad_y.rows().data;
  for (const auto launch : {cuda::affinity_output_moments, cuda::affinity_output,
                            cuda::affinity_output_sums, cuda::affinity_output_backward}) {
    check(launch(o, queue, &failure), failure);
  }
  o.facts = more_facts.rows().data;
  o.summed = true;
  for (const bool batch : {false, true}) {
    set_norm(&o, weight, running, &batches, batch);
    check(cuda::affinity_output_layer(o, queue, &failure), failure);
    check(cuda::affinity_output_gradient(o, queue, &failure), failure);
  }
  if (!std::isfinite(static_cast<float*>(value.rows().data)[images - 1])) {
    fprintf(stderr, "the mean over the pairs is not finite\n");
    exit(3);
  }
}

// Crops of this layout as unit vectors, and the gradient through them.
void run_unit(int64_t dim, DType dtype, DType of_units, Layout layout, int offset) {
  const Tensor crops(dtype, 3, 2, dim, layout, offset), to(dtype, 3, 2, dim, layout, offset);
  const Tensor units(of_units, 3, 2, dim, Layout::contiguous, 0);
  const Tensor grad(of_units, 3, 2, dim, Layout::contiguous, 0);
  const std::unique_ptr<float[]> factors(new float[12]);
  UnitProblem p;
  p.images = 3;
  p.dim = dim;
  p.z = crops.rows();
  p.unit = units.rows();
  p.factors = factors.get();
  cuda::Failure failure;
  check(cuda::unit(p, {0, nullptr, nullptr}, &failure), failure);
  p.grad = grad.rows();
  p.grad_z = to.rows();
  check(cuda::unit_backward(p, {0, nullptr, nullptr}, &failure), failure);
  if (!std::isfinite(factors[11])) {
    fprintf(stderr, "the norm of the last row is not finite\n");
    exit(3);
  }
}

struct Case {
  int64_t images;
  int globals, locals;  // no globals: local crops alone repel one another
  int64_t dim;
  bool both;  // targets and features
};

void run(const Case& c, DType dtype, Layout layout, int offset, cuda::Queue queue) {
  const auto tensor = [&](int64_t count) {
    return Tensor(dtype, c.images, count > 0 ? count : 1, c.dim, layout, offset);
  };
  // Gradients are dense over D.
  const auto gradient = [&](int64_t count) {
    return Tensor(dtype, c.images, count > 0 ? count : 1, c.dim,
                  layout == Layout::every_second ? Layout::contiguous : layout, offset);
  };
  cuda::Failure failure;
  const Tensor x = tensor(c.globals), y = tensor(c.locals);
  const Tensor t = tensor(c.globals), r = tensor(c.locals);
  const Tensor gx = gradient(c.globals), gy = gradient(c.locals);
  const Tensor gr = gradient(c.locals);
  const int scaled = c.globals + c.locals * (c.both ? 2 : 1);
  std::vector<float> row_scale(c.images * scaled), total(c.images), terms(3 * c.images);
  for (const Reduction reduction : {Reduction::mean, Reduction::none}) {
    CosineProblem p;
    p.images = c.images;
    p.dim = c.dim;
    if (c.globals > 0) {
      p.global_crops = x.rows();
      p.grad_global = gx.rows();
    }
    if (c.locals > 0) {
      p.local_crops = y.rows();
      p.grad_local = gy.rows();
    }
    if (c.both) {
      if (c.globals > 0) p.targets = t.rows();
      p.features = r.rows();
      p.grad_features = gr.rows();
    }
    p.repulsion_weight = 0.5;
    p.repulsion = true;
    p.reduction = reduction;
    if (dtype == DType::f16) p.row_scale = row_scale.data();
    p.total = total.data();
    p.terms = terms.data();
    check(cuda::cosine(p, queue, &failure), failure);
    if (!std::isfinite(total[0])) {
      fprintf(stderr, "the loss is not finite\n");
      exit(3);
    }
  }

  SimilarityProblem s;
  s.images = c.images;
  s.dim = c.dim;
  s.a = x.rows();
  s.b = y.rows();
  const Tensor cosines(dtype, c.images, s.a.count, s.b.count, Layout::contiguous, offset);
  s.cosines = cosines.rows();
  check(cuda::similarity(s, queue, &failure), failure);
  s.grad = cosines.rows();
  s.grad_a = gx.rows();
  s.grad_b = gy.rows();
  check(cuda::similarity_backward(s, queue, &failure), failure);

  ScaleProblem z;
  z.images = c.images;
  z.dim = c.dim;
  z.gradients[0] = gx.rows();
  if (c.locals > 0) z.gradients[1] = gy.rows();
  if (c.both) z.gradients[2] = gr.rows();
  const Tensor upstream(DType::f32, c.images, 1, 1, Layout::contiguous, 0);
  const Tensor scales(DType::f32, c.images, gx.rows().count, 1, Layout::contiguous, 0);
  z.upstream = upstream.rows();
  z.row_scales[0] = scales.rows();
  check(cuda::scale(z, queue, &failure), failure);
}

}  // namespace

int main() {
  cuda::Failure failure;
  const int64_t bytes = cuda::workspace_bytes(0, &failure);
  check(bytes > 0 ? Status::ok : Status::launch_failed, failure);
  std::unique_ptr<unsigned char[]> workspace(new unsigned char[bytes]());
  const cuda::Queue queue{0, nullptr, workspace.get()};
  // Rows in whole vectors, and not so; rows walked in chunks, the last of them shorter.
  const Case resident[] = {
      {3, 2, 5, 64, true}, {3, 2, 3, 33, false}, {3, 0, 3, 64, true}, {3, 0, 4, 33, false}};
  const Case chunked[] = {{1, 3, 14, 2056, true}, {1, 2, 0, 65544, false}};
  int runs = 0;
  for (const int architecture : {80, 90}) {
    emulation::settings.architecture = architecture;
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      for (const Case& c : resident) {
        run(c, dtype, Layout::contiguous, 0, queue);
        run(c, dtype, Layout::contiguous, 1, queue);  // misaligned
        run(c, dtype, Layout::view_major, 0, queue);
        run(c, dtype, Layout::every_second, 0, queue);
        runs += 4;
      }
    }
    for (const Case& c : chunked) run(c, DType::bf16, Layout::contiguous, 0, queue), ++runs;
  }
  run(chunked[0], DType::f32, Layout::contiguous, 1, queue), ++runs;
  // In words and vectors, and not so; chunks of D; one part of K, where queries fill the device,
  // and several; negatives of the batch in either order, and
  // with those of other processes behind them.
  for (const DType kept : {DType::f32, DType::bf16, DType::f16}) {
    const auto contrast = [&](const Contrast& c, DType owed, Layout layout, int offset,
                              Reduction reduction) {
      run_info_nce(c, owed, kept, layout, offset, reduction, workspace.get()), ++runs;
    };
    for (const DType owed : {DType::f32, DType::bf16}) {
      contrast({2, 2, 1, 2, 40, 24}, owed, Layout::contiguous, 0, Reduction::mean);
      contrast({5, 0, 1, 3, 0, 33}, owed, Layout::contiguous, 1, Reduction::none);
      contrast({3, 2, 0, 2, 33, 520}, owed, Layout::view_major, 0, Reduction::pairs);
      contrast({1, 0, 1, 1, 1, 1}, owed, Layout::every_second, 0, Reduction::sum);
      contrast({5, 2, 1, 2, 0, 24}, owed, Layout::view_major, 0, Reduction::sum);
      contrast({5, 2, 1, 2, 43, 24, true}, owed, Layout::contiguous, 1, Reduction::sum);
    }
    contrast({9, 2, 2, 2, 15, 17}, kept, Layout::every_second, 0, Reduction::none);
    contrast({1, 0, 2, 33, 20, 136}, kept, Layout::contiguous, 0, Reduction::mean);
  }
  // In vectors, misaligned, and of no whole vector; two tiles of columns; more than one chunk of
  // crops, and more images than blocks.
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    run_affinity(5, 3, 64, dtype, 0), ++runs;
    run_affinity(5, 3, 64, dtype, 1), ++runs;
    run_affinity(2, 2, 7, dtype, 0), ++runs;
    run_affinity(2, 9, 264, dtype, 0), ++runs;
    run_affinity(70, 2, 1, dtype, 0), ++runs;
  }
  // In vectors by a warp and by a block, of which some accesses lie beyond what it keeps; a last
  // vector of fp32 by half; misaligned, and one number at a time.
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const DType of_units : {DType::f32, dtype}) {
      run_unit(64, dtype, of_units, Layout::view_major, 0), ++runs;
      run_unit(4616, dtype, of_units, Layout::contiguous, 0), ++runs;
      run_unit(68, dtype, of_units, Layout::contiguous, 0), ++runs;
      run_unit(64, dtype, of_units, Layout::contiguous, 1), ++runs;
      run_unit(33, dtype, of_units, Layout::every_second, 0), ++runs;
    }
  }
  printf("%d problems within bounds\n", runs);
}
