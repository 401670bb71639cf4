// A block's walk over its images: the route of the cosine's kernel and of both of similarity.
//
//   products of the rows → (norms outside the range: again, with scaled rows) → algebra → gradient
//
// Where an image fits, all of that happens on one stage, while the next image arrives in another.
// Else the chunks of the image pass twice, for the products and for the gradient.
#pragma once

#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/facts.cuh"
#include "cuda/feed.cuh"
#include "cuda/gram.cuh"
#include "cuda/shared.cuh"

namespace logo {
namespace cuda {

// The parts of a block's shared memory; image_plan.h sums up their sizes.
struct SharedParts {
  unsigned char* stages;
  unsigned char* facts;
  float* gram;
  Arrivals* arrivals;
  unsigned* flag;  // of comes_last

  __device__ SharedParts(const ImagePlan& plan, int rows) {
    stages = dynamic_shared();
    facts = stages + plan.stages * plan.stage_bytes;
    gram = reinterpret_cast<float*>(facts) + kFloatsPerRow * rows;
    float* const end = gram + plan.slices * plan.gram_rows * gram_pitch(plan.gram_rows);
    arrivals = reinterpret_cast<Arrivals*>((reinterpret_cast<uintptr_t>(end) + 7) / 8 * 8);
    flag = reinterpret_cast<unsigned*>(arrivals + kMaxStages);
  }
};

// The order in which a block wants its chunks. Pass 0: products; 1: gradient.
struct Cursor {
  int64_t image, chunk = 0;
  int pass = 0;

  __device__ void advance(int64_t chunks, int passes) {
    if (++chunk < chunks) return;
    chunk = 0;
    if (++pass < passes) return;
    pass = 0;
    image += gridDim.x;
  }
};

// Kernel: algebra(gram, facts, image, scaled), by all threads; then, where Kernel::gradients(),
// gradient<SCALED>(stage, gram, facts, image, first column).
template <class T, class Kernel>
__device__ void walk_images(const Input& input, const ImagePlan& plan, const SharedParts& shared,
                            Kernel& kernel) {
  Feed<T> feed(input, plan, shared.stages, shared.arrivals);
  const Gram gram(shared.gram, input.rows, plan);
  const Facts facts(shared.facts, input.rows);
  const bool resident = plan.chunks == 1;
  const int passes = resident || !kernel.gradients() ? 1 : 2;

  Cursor cursor{blockIdx.x};
  const auto fill = [&] {
    while (feed.has_room() && cursor.image < input.images) {
      feed.issue(cursor.image, cursor.chunk);
      cursor.advance(plan.chunks, passes);
    }
  };
  // Chunks one at a time, besides the order of the cursor.
  const auto for_each_chunk = [&](int64_t image, const auto& visit) {
#pragma unroll 1
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      feed.issue(image, chunk);
      __syncthreads();
      visit(feed.next(chunk), chunk);
      feed.release();
    }
  };

  fill();
  // Arrivals order a bulk copy before its readers; racecheck wants a barrier as well. Later copies
  // have one on the way, if there is more than one stage.
  __syncthreads();
#pragma unroll 1
  for (int64_t image = blockIdx.x; image < input.images; image += gridDim.x) {
    Stage<T> stage{};
    if (plan.stages == 1) __syncthreads();
#pragma unroll 1
    for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
      stage = feed.next(chunk);
      form_gram(stage, gram, chunk > 0);
      if (resident) break;
      feed.release();
      fill();
    }
    __syncthreads();
    sum_slices(gram);
    __syncthreads();
    const bool scaled = invert_norms<T>(gram, facts);
    if (scaled) {
      if (resident) {
        find_largest(stage, input.rows, facts, false);
        __syncthreads();
        choose_factors(input.rows, facts);
        __syncthreads();
        multiply_rows<true>(stage, gram, facts.factor, false);
      } else {
        feed.drain();
        for_each_chunk(image, [&](const Stage<T>& part, int64_t chunk) {
          find_largest(part, input.rows, facts, chunk > 0);
        });
        choose_factors(input.rows, facts);
        __syncthreads();
        for_each_chunk(image, [&](const Stage<T>& part, int64_t chunk) {
          multiply_rows<true>(part, gram, facts.factor, chunk > 0);
        });
        cursor = Cursor{passes == 2 ? image : image + gridDim.x, 0, passes - 1};
        fill();
      }
      __syncthreads();
      sum_slices(gram);
      __syncthreads();
      invert_norms<T>(gram, facts);
    }
    kernel.algebra(gram, facts, image, scaled);
    __syncthreads();
    if (kernel.gradients()) {
#pragma unroll 1
      for (int64_t chunk = 0; chunk < plan.chunks; ++chunk) {
        if (!resident) stage = feed.next(chunk);
        if (scaled) {
          kernel.template gradient<true>(stage, gram, facts, image, chunk * plan.chunk);
        } else {
          kernel.template gradient<false>(stage, gram, facts, image, chunk * plan.chunk);
        }
        if (resident) break;
        feed.release();
        fill();
      }
    }
    if (resident) {
      feed.release();
      fill();
    }
  }
}

// Launches a walk by as many blocks as the device holds at once, but no more than there are images.
template <class Arguments>
Status launch_walk(const char* name, const char* shape, void (*kernel)(Arguments),
                   const Arguments& arguments, const Limits& limits, const Queue& queue,
                   Failure* failure) {
  const ImagePlan& plan = arguments.plan;
  if (plan.threads == 0) {
    return fail(failure, name, shape, queue.device,
                "its shared memory does not hold even a part of an image; use another backend");
  }
  int blocks = 0;
  cudaError_t error =
      Occupancy::blocks(kernel, queue.device, plan.threads, plan.shared_bytes, &blocks);
  if (error == cudaSuccess && blocks == 0) error = cudaErrorInvalidConfiguration;
  if (error == cudaSuccess) {
    const int64_t images = arguments.p.images, most = int64_t(blocks) * limits.multiprocessors;
    const Grid grid{unsigned(images < most ? images : most), unsigned(plan.threads),
                    size_t(plan.shared_bytes), static_cast<cudaStream_t>(queue.stream)};
    error = launch(kernel, grid, arguments);
  }
  return error == cudaSuccess ? Status::ok
                              : fail(failure, name, shape, queue.device, cudaGetErrorString(error));
}

}  // namespace cuda
}  // namespace logo
