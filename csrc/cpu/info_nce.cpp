// InfoNCE's pass over the negatives: an attention forward with keys = values.
//
// Negatives are split into parts, by the problem's sizes alone, and each part into tiles. A thread
// packs a tile of unit negatives once and takes its queries past it, block by block: cosines, their
// softmax weights in place, the weights' product with the same tile. Parts are combined in order,
// so that results do not depend on the number of threads.
//
// Compiled once per instruction set (LOGO_SIMD names the namespace); dispatch.cpp chooses.
#include <cmath>

#include "cpu/memory.h"
#include "cpu/parallel.h"
#include "cpu/product.h"
#include "cpu/softmax.h"
#include "cpu/unit_tile.h"
#include "cpu/variants.h"

namespace logo {
namespace cpu {
namespace {

constexpr int64_t kBlock = 16 * kBandRows;  // queries whose weights lie in the L2 cache
constexpr int64_t kTileBytes = 512 << 10;   // of both forms of a tile, in the L2 cache
constexpr int64_t kPartsBytes = 4 << 20;    // of what the parts find, all together
constexpr int64_t kMostParts = 64;
constexpr int64_t kLeastTiles = 8;  // of a part

// How a problem is cut up; for one instruction set, a function of its sizes.
template <class T>
struct Cut {
  int64_t queries, dim, row;  // row: numbers of a sum of unit vectors, whole vectors
  int64_t tile, tiles, parts;

  explicit Cut(const InfoNCEProblem& p)
      : queries(p.queries.count),
        dim(p.dim),
        row((p.dim + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        tile(128) {
    while (tile > kPanel<T> && tile > 32 && 2 * tile * row * int64_t(sizeof(T)) > kTileBytes) {
      tile /= 2;
    }
    tiles = (p.negatives.count + tile - 1) / tile;
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

template <class T, Factors kFactors>
class Pass {
 public:
  // Queries of `width` numbers, or pairs, each.
  Pass(const InfoNCEProblem& p, const Cut<T>& cut, const Softmax<T>& softmax, const T* queries,
       int64_t width)
      : p_(p),
        cut_(cut),
        softmax_(softmax),
        queries_(queries),
        width_(width),
        negatives_(p.negatives, p.dim, cut.tile) {}

  bool reserve() {
    if (!negatives_.reserve()) return false;
    if (!scratch_.reserve(Scratch::bytes<T>(kBlock * cut_.tile))) return false;
    weights_ = scratch_.take<T>(kBlock * cut_.tile);
    return true;
  }

  // Queries first .. last past one part; softmax and means are those of the part, from query 0.
  void run(int64_t part, int64_t first, int64_t last, SoftmaxRow<T>* softmax, T* means) {
    for (int64_t query = first; query < last; ++query) softmax[query] = softmax_.start();
    const int64_t from = cut_.tiles * part / cut_.parts, to = cut_.tiles * (part + 1) / cut_.parts;
    for (int64_t tile = from; tile < to; ++tile) {
      const int64_t start = tile * cut_.tile, left = p_.negatives.count - start;
      const int64_t count = left < cut_.tile ? left : cut_.tile;
      negatives_.pack(start, count);
      if constexpr (kFactors == Factors::pairs) negatives_.pair(count);
      for (int64_t query = first; query < last; query += kBlock) {
        const int64_t rows = last - query < kBlock ? last - query : kBlock;
        find_cosines(query, rows, count);
        weigh(query, rows, start, count, softmax, tile == from ? nullptr : means);
        add_means(query, rows, count, means, tile != from);
      }
    }
  }

 private:
  void find_cosines(int64_t query, int64_t rows, int64_t count) {
    for (int64_t k = 0; k < count; k += kPanel<T>) {
      for (int64_t d = 0; d < width_; d += kTerms) {
        const int64_t depth = width_ - d < kTerms ? width_ - d : kTerms;
        multiply<T, kFactors>(
            {queries_ + query * width_ + d, width_, negatives_.rows(k) + d * kPanel<T>, depth,
             weights_ + k, cut_.tile, d > 0},
            rows, count - k);
      }
    }
  }

  // means: what earlier tiles found, if any.
  void weigh(int64_t query, int64_t rows, int64_t start, int64_t count, SoftmaxRow<T>* softmax,
             T* means) {
    const int64_t padded = (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
    Hidden hidden[2] = {{count, padded}, {0, 0}};
    for (int64_t i = 0; i < rows; ++i) {
      if (p_.own_negatives > 0) {
        const int64_t own = (query + i) / p_.own_queries * p_.own_negatives - start;
        const int64_t end = own + p_.own_negatives;
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

  const InfoNCEProblem& p_;
  const Cut<T>& cut_;
  const Softmax<T>& softmax_;
  const T* const queries_;
  const int64_t width_;
  UnitTile<T> negatives_;
  Scratch scratch_;
  T* weights_ = nullptr;  // [kBlock, tile] cosines, then weights
};

// What the parts found of one query, in their order.
template <class T>
void combine(const InfoNCEProblem& p, const Cut<T>& cut, const Found<T>& found, int64_t query) {
  T exponent = -T(__builtin_inf());
  for (int64_t part = 0; part < cut.parts; ++part) {
    const T other = found.softmax[part * cut.queries + query].exponent;
    if (other > exponent) exponent = other;
  }
  T factors[kMostParts];
  double sum = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    const SoftmaxRow<T>& row = found.softmax[part * cut.queries + query];
    const double factor = exp2(double(row.exponent) - double(exponent));
    factors[part] = T(factor);
    sum += factor * row.sum;
  }
  reinterpret_cast<T*>(p.lse)[query] = T(double(exponent) * Softmax<T>::kLn2 + log(sum));
  T* const mean = reinterpret_cast<T*>(p.mean) + query * cut.dim;
  const T inverse = T(1 / sum);
  for (int64_t d = 0; d < cut.dim; ++d) {
    T total = 0;
    for (int64_t part = 0; part < cut.parts; ++part) {
      total += factors[part] * found.means[(part * cut.queries + query) * cut.row + d];
    }
    mean[d] = total * inverse;
  }
}

template <class T, Factors kFactors>
Status run(const InfoNCEProblem& p) {
  const Cut<T> cut(p);
  const Softmax<T> softmax(p.temperature);
  const int64_t rows = cut.parts * cut.queries;
  const bool in_place = cut.parts == 1 && cut.row == cut.dim;
  const int64_t sums = in_place ? 0 : rows * cut.row;
  const int64_t width = kFactors == Factors::pairs ? (cut.dim + 1) / 2 : cut.dim;
  const int64_t paired = kFactors == Factors::pairs ? cut.queries * width : 0;
  Scratch scratch;
  if (!scratch.reserve(Scratch::bytes<SoftmaxRow<T>>(rows) + Scratch::bytes<T>(sums) +
                       Scratch::bytes<T>(paired))) {
    return Status::out_of_memory;
  }
  const Found<T> found = {scratch.take<SoftmaxRow<T>>(rows),
                          in_place ? reinterpret_cast<T*>(p.mean) : scratch.take<T>(sums)};
  const T* queries = static_cast<const T*>(p.queries.data);
  if constexpr (kFactors == Factors::pairs) {
    T* const pairs = scratch.take<T>(paired);
    for (int64_t query = 0; query < cut.queries; ++query) {
      pair_row(queries + query * cut.dim, cut.dim, pairs + query * width);
    }
    queries = pairs;
  }

  // Bands of queries past one part each, one part after the other: a thread has few parts, and
  // packs their tiles for many queries.
  const int64_t units = cut.parts * cut.bands();
  const int64_t unit = kBandRows * (p.negatives.count / cut.parts) * p.dim / kLanes<T>;
  const int threads = threads_for(units, unit, p.threads);
  bool short_of_memory = false;
#pragma omp parallel num_threads(threads)
  {
    Pass<T, kFactors> pass(p, cut, softmax, queries, width);
    const bool ready = pass.reserve();
#pragma omp critical
    short_of_memory = short_of_memory || !ready;
#pragma omp barrier
    const Share share = share_of(units);
    for (int64_t at = share.first; !short_of_memory && at < share.last;) {
      const int64_t part = at / cut.bands(), begin = at - part * cut.bands();
      const int64_t left = cut.bands() - begin, wanted = share.last - at;
      const int64_t bands = wanted < left ? wanted : left;
      const int64_t first = begin * kBandRows, end = first + bands * kBandRows;
      pass.run(part, first, end < cut.queries ? end : cut.queries,
               found.softmax + part * cut.queries, found.means + part * cut.queries * cut.row);
      at += bands;
    }
#pragma omp barrier
    const Share own = share_of(cut.queries);
    for (int64_t query = own.first; !short_of_memory && query < own.last; ++query) {
      combine(p, cut, found, query);
    }
  }
  return short_of_memory ? Status::out_of_memory : Status::ok;
}

}  // namespace

namespace LOGO_SIMD {

Status info_nce(const InfoNCEProblem& p) {
  if (p.queries.dtype == DType::f64) return run<double, Factors::numbers>(p);
#if defined(__AVX512F__)
  // Where queries and negatives came as bf16, their unit rows are owed no more than that.
  if (p.owed == DType::bf16 && p.negatives.dtype == DType::bf16 && multiplies_pairs()) {
    return run<float, Factors::pairs>(p);
  }
#endif
  return run<float, Factors::numbers>(p);
}

}  // namespace LOGO_SIMD
}  // namespace cpu
}  // namespace logo
