// Two sums for each column over many rows: the same on every run and for any number of threads.
#pragma once

#include "cpu/columns.h"
#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/subnormals.h"
#include "logo/batch_norm.h"

namespace logo {
namespace cpu {
namespace {

// Sums of a few rows are in T, and the sums of these in fp64.
template <class T>
class ColumnSums {
 public:
  ColumnSums(Scratch& scratch, int64_t width) : width_(width), near_(scratch.take<T>(2 * width)) {
    clear();
  }

  static size_t scratch_bytes(int64_t width) { return Scratch::bytes<T>(2 * width); }

  T* first() const { return near_; }
  T* second() const { return near_ + width_; }

  // After rows were added. chunk: the fp64 sums, [2, width], of the chunk that they are of.
  void added(int64_t rows, double* chunk) {
    if ((rows_ += rows) >= kRows) flush(chunk);
  }
  void flush(double* chunk) {
    for (int64_t k = 0; k < 2 * width_; ++k) chunk[k] += double(near_[k]);
    clear();
  }

 private:
  static constexpr int64_t kRows = 64;

  void clear() {
    memset(near_, 0, size_t(2 * width_) * sizeof(T));
    rows_ = 0;
  }

  int64_t width_, rows_ = 0;
  T* near_;
};

// total [2, width]: the sums over all items of whatever add(first item, last item, sums, chunk)
// adds to them. Chunks of items depend on nothing but the sizes, and are added up in order.
template <class T, class Add>
inline Status sum_columns(int64_t items, int64_t rows_per_item, int64_t width, int threads,
                          Scratch& scratch, double** total, const Add& add) {
  constexpr int64_t kChunkElements = 32 * 1024, kMostChunks = 128;
  int64_t chunks = items * rows_per_item * width / kChunkElements;
  chunks = chunks < 1 ? 1 : chunks > kMostChunks ? kMostChunks : chunks;
  if (chunks > items) chunks = items;
  if (!scratch.reserve(Scratch::bytes<double>(chunks * 2 * width))) return Status::out_of_memory;
  double* const sums = scratch.take<double>(chunks * 2 * width);
  *total = sums;
  threads = threads_for(chunks, items * rows_per_item * width / chunks, threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads) reduction(|| : short_of_memory)
  {
    const WithSubnormals mode;
    Scratch own;
    short_of_memory = !own.reserve(ColumnSums<T>::scratch_bytes(width));
    const Share share = share_of(chunks);
    if (!short_of_memory) {
      ColumnSums<T> near(own, width);
      for (int64_t chunk = share.first; chunk < share.last; ++chunk) {
        double* const here = sums + chunk * 2 * width;
        memset(here, 0, size_t(2 * width) * sizeof(double));
        const int64_t last = items * (chunk + 1) / chunks;
        add(items * chunk / chunks, last, near, here);
        near.flush(here);
      }
    }
  }
  if (short_of_memory) return Status::out_of_memory;
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    const double* const other = sums + chunk * 2 * width;
    for (int64_t k = 0; k < 2 * width; ++k) sums[k] += other[k];
  }
  return Status::ok;
}

// The mean and the biased variance of each column, from the sums of d and d² over all pairs, d the
// distance from `shift`: as p.norm where a batch norm is given, else as p.moments.
template <class T, class Problem>
inline void write_moments(const Problem& p, const double* sums, const T* shift) {
  const double count = double(p.all_pairs());
  T* const moments = static_cast<T*>(p.moments);
  if (p.batches != nullptr) ++*p.batches;
  for (int64_t k = 0; k < p.width; ++k) {
    const double off = sums[k] / count, mean = double(shift[k]) + off;
    double var = sums[p.width + k] / count - off * off;
    if (var < 0) var = 0;  // NaN stays
    if (p.norm_weight != nullptr) {
      fold_batch<T>(p, mean, var, count, k);
    } else {
      moments[k] = T(mean);
      moments[p.width + k] = T(var);
    }
  }
}

// p.norm from constants.
template <class T, class Problem>
inline void write_constants(const Problem& p) {
  for (int64_t k = 0; k < p.width; ++k) fold_running<T>(p, k);
}

// The sums as p.facts where these are given, else as p.sums.
template <class T, class Problem>
inline void write_sums(const Problem& p, const double* sums) {
  T* const to = static_cast<T*>(p.sums);
  for (int64_t k = 0; k < p.width; ++k) {
    if (p.facts != nullptr) {
      write_facts_of<T>(p, sums[k], sums[p.width + k], k);
    } else {
      to[k] = T(sums[k]);
      to[p.width + k] = T(sums[p.width + k]);
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace logo
