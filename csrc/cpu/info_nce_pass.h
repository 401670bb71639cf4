// InfoNCE's pass over the negatives: an attention forward with keys = values.
//
// Negatives are split into parts, by the problem's sizes alone, and each part into tiles. A thread
// packs a tile of unit negatives once and takes its queries past it, band by band: cosines, their
// softmax weights in place, the weights' product with the same tile. Parts are combined in order,
// so that results do not depend on the number of threads.
//
// info_nce.cpp, which includes this, is compiled once per instruction set; dispatch.cpp chooses.
#pragma once

#include <cmath>

#include "cpu/columns.h"
#include "cpu/memory.h"
#include "cpu/product.h"
#include "cpu/softmax.h"
#include "cpu/unit_tile.h"
#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

constexpr int64_t kTileBytes = 512 << 10;  // of both forms of a tile, in the L2 cache
constexpr int64_t kPartsBytes = 4 << 20;   // of the sums of all parts together
constexpr int64_t kMostParts = 64;
constexpr int64_t kLeastTiles = 8;  // of a part

// How a problem is cut up: for one instruction set, a function of its sizes.
template <class T>
struct Cut {
  int64_t queries, dim, row;  // row: numbers of a sum of unit vectors, whole vectors
  int64_t tile, tiles, parts;

  explicit Cut(const InfoNCEProblem& p)
      : queries(p.queries()),
        dim(p.dim),
        row((p.dim + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        tile(256) {
    while (tile > kPanel<T> && tile > 32 && 2 * tile * row * int64_t(sizeof(T)) > kTileBytes) {
      tile /= 2;
    }
    while (tile > kPanel<T> && tile / 2 >= p.negative_count()) tile /= 2;
    tiles = (p.negative_count() + tile - 1) / tile;
    const int64_t affordable = kPartsBytes / (queries * row * int64_t(sizeof(T)));
    parts = tiles / kLeastTiles;
    if (parts > affordable) parts = affordable;
    if (parts > kMostParts) parts = kMostParts;
    if (parts < 1) parts = 1;
  }

  int64_t bands() const { return (queries + kBandRows - 1) / kBandRows; }
};

// The softmax of each query over one part, and its weights' product with the negatives.
template <class T>
struct Found {
  SoftmaxRow<T>* softmax;  // [parts, N]
  T* means;                // [parts, N, row]
};

// Unit or zero rows.
template <class T>
struct Queries {
  const T* rows;
  int64_t stride, width;  // numbers from one to the next; numbers, or pairs, of each
};

template <class T, Factors kFactors>
class Pass {
 public:
  Pass(const InfoNCEProblem& p, const Cut<T>& cut, const Softmax<T>& softmax,
       const Queries<T>& queries)
      : cut_(cut),
        softmax_(softmax),
        queries_(queries),
        negatives_(p.negatives.present() ? p.negatives : p.positives, p.dim, cut.tile),
        count_(p.negative_count()),
        own_queries_(p.crops()),
        own_negatives_(p.own_negatives()) {}

  bool reserve() {
    if (!negatives_.reserve()) return false;
    if (!scratch_.reserve(Scratch::bytes<T>(kBandRows * cut_.tile))) return false;
    weights_ = scratch_.take<T>(kBandRows * cut_.tile);
    return true;
  }

  // Queries first .. last past one part; softmax and means are those of the part, from query 0.
  void run(int64_t part, int64_t first, int64_t last, SoftmaxRow<T>* softmax, T* means) {
    for (int64_t query = first; query < last; ++query) softmax[query] = softmax_.start();
    const int64_t from = cut_.tiles * part / cut_.parts, to = cut_.tiles * (part + 1) / cut_.parts;
    for (int64_t tile = from; tile < to; ++tile) {
      const int64_t start = tile * cut_.tile, left = count_ - start;
      const int64_t count = left < cut_.tile ? left : cut_.tile;
      negatives_.pack(start, count);
      if constexpr (kFactors == Factors::pairs) negatives_.pair(count);
      for (int64_t query = first; query < last; query += kBandRows) {
        const int64_t rows = last - query < kBandRows ? last - query : kBandRows;
        find_cosines(query, rows, count);
        weigh(query, rows, start, count, softmax, tile == from ? nullptr : means);
        add_means(query, rows, count, means, tile != from);
      }
    }
  }

 private:
  void find_cosines(int64_t query, int64_t rows, int64_t count) {
    for (int64_t k = 0; k < count; k += kPanel<T>) {
      for (int64_t d = 0; d < queries_.width; d += kTerms) {
        const int64_t depth = queries_.width - d < kTerms ? queries_.width - d : kTerms;
        multiply<T, kFactors>(
            {queries_.rows + query * queries_.stride + d, queries_.stride,
             negatives_.rows(k) + d * kPanel<T>, depth, weights_ + k, cut_.tile, d > 0},
            rows, count - k);
      }
    }
  }

  // means: sums over earlier tiles, if any.
  void weigh(int64_t query, int64_t rows, int64_t start, int64_t count, SoftmaxRow<T>* softmax,
             T* means) {
    const int64_t padded = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    Hidden hidden[2] = {{count, padded}, {0, 0}};
    for (int64_t i = 0; i < rows; ++i) {
      if (own_negatives_ > 0) {
        const int64_t own = (query + i) / own_queries_ * own_negatives_ - start;
        const int64_t end = own + own_negatives_;
        hidden[1] = {own > 0 ? own : 0, end < count ? end : count};
      }
      T* const weights = weights_ + i * cut_.tile;
      const T before = softmax_.weigh(softmax[query + i], weights, padded, hidden);
      if constexpr (kFactors == Factors::pairs) pair_row(weights, padded, weights);
      if (before == 1 || means == nullptr) continue;
      T* const mean = means + (query + i) * cut_.row;
      for (int64_t d = 0; d < cut_.row; ++d) mean[d] *= before;
    }
  }

  void add_means(int64_t query, int64_t rows, int64_t count, T* means, bool add) {
    const int64_t depth = kFactors == Factors::pairs ? (count + 1) / 2 : count;
    for (int64_t d = 0; d < cut_.dim; d += kPanel<T>) {
      multiply<T, kFactors>({weights_, cut_.tile, negatives_.columns(d), depth,
                             means + query * cut_.row + d, cut_.row, add},
                            rows, cut_.dim - d);
    }
  }

  const Cut<T>& cut_;
  const Softmax<T>& softmax_;
  const Queries<T>& queries_;
  UnitTile<T> negatives_;
  const int64_t count_;  // of the negatives
  // Query n does not see negatives k with k / own_negatives_ == n / own_queries_; 0: it sees all.
  const int64_t own_queries_, own_negatives_;
  Scratch scratch_;
  T* weights_ = nullptr;  // [kBandRows, tile] cosines, then weights: in the L1 cache
};

// Combines the sums that the parts found for one query, in their order. Writes its mean.
template <class T>
LogSum combine(const Cut<T>& cut, const Softmax<T>& softmax, const Found<T>& found, int64_t query,
               T* mean) {
  T most = -T(__builtin_inf());
  for (int64_t part = 0; part < cut.parts; ++part) {
    const T other = found.softmax[part * cut.queries + query].most;
    if (other > most) most = other;
  }
  T factors[kMostParts];
  double sum = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    const SoftmaxRow<T>& row = found.softmax[part * cut.queries + query];
    const double factor = softmax.change(row.most, most);
    factors[part] = T(factor);
    sum += factor * row.sum;
  }
  const T divisor = T(sum);
  for_columns<T>(cut.dim, [&](int64_t d, auto at) {
    Vector<T> total{};
    for (int64_t part = 0; part < cut.parts; ++part) {
      total += load(found.means + (part * cut.queries + query) * cut.row + d) * factors[part];
    }
    at.store(total / divisor, mean + d);
  });
  return softmax.log_sum(most, sum);
}

}  // namespace
}  // namespace cpu
}  // namespace logo
