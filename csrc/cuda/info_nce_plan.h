// How InfoNCE against negatives is laid over a GPU: a pure function of its sizes, of how its
// operands are kept, and of the device's limits.
//
// - A block owns a tile of queries and walks over tiles of negatives: all of them, or one of
//   `splits` equal parts. Few queries are split until blocks fill the device.
// - Up to 128 columns of halves, a warp owns 32 queries, so that a fragment of negatives that it
//   loads serves two products; beyond, 16 queries, whose sums over 256 columns take 128 registers.
// - More than 256 columns come in chunks: a block sums the scores over all of them, and the mean
//   over one chunk alone. Each chunk's blocks form the scores anew, so that D columns cost
//   (1 + chunks) / 2 times the products that they need, and queries travel with the negatives.
#pragma once

#include <cstdint>

#include "cuda/limits.h"
#include "logo/macros.h"

namespace logo {
namespace cuda {

constexpr int kInfoNCEThreads = 128;
constexpr int kNarrowColumns = 128;
constexpr int kWideColumns = 256;

// Queries of a block and negatives of a tile.
LOGO_FUNCTION constexpr int info_nce_rows(bool wide) { return wide ? 64 : 128; }
LOGO_FUNCTION constexpr int info_nce_tile(int element_bytes) {
  return element_bytes == 4 ? 16 : 32;
}

struct InfoNCEPlan {
  int threads = 0;  // 0: the device has not the shared memory
  bool wide = false;
  int rows = 0;  // queries of a block
  int tile = 0;  // negatives of a stage
  int stages = 0;
  int resident = 0;  // blocks that a multiprocessor is to hold
  int planes = 0;    // parts of a query that are kept apart
  int chunk = 0;     // columns of a stage
  int chunks = 0;    // of D, the last one may be shorter
  int pitch = 0;     // bytes from row to row of a stage
  int64_t dim = 0;   // D, padded to steps of the tensor cores
  int64_t query_tiles = 0, tiles = 0, splits = 0;
  int64_t query_bytes = 0, stage_bytes = 0, shared_bytes = 0;
  // The workspace: inverse norms, prepared queries, a counter, the queries' losses, from each split
  // maxima and sums, and from each of several means.
  int64_t queries_at = 0, finished_at = 0, losses_at = 0, sums_at = 0, means_at = 0;
  int64_t workspace_bytes = 0;

  int64_t blocks() const { return query_tiles * chunks * splits; }
};

// The number of parts that makes the time least: waves of blocks, times a block's tiles and its
// fixed cost, plus the sums of all parts.
inline int64_t info_nce_splits(const InfoNCEPlan& plan, int64_t queries, int multiprocessors) {
  constexpr double kOnce = 4;  // tiles that a block's start and end are worth
  // The cost of the bytes of partial sums, in tiles: 5 TB/s of L2 against 400 TFLOP/s.
  const int64_t together = int64_t(multiprocessors) * plan.resident;
  const double part = 160.0 * double(queries) / (double(plan.rows) * plan.tile * double(together));
  const int64_t independent = plan.query_tiles * plan.chunks;
  const int64_t most = 2 * together / independent;
  int64_t best = 1;
  double least = 0;
  for (int64_t splits = 1; splits <= most + 1 && splits <= plan.tiles; ++splits) {
    const int64_t waves = (independent * splits + together - 1) / together;
    const int64_t walked = (plan.tiles + splits - 1) / splits;
    const double time =
        double(waves) * (double(walked) + kOnce) + (splits > 1 ? part * double(splits) : 0.0);
    if (splits == 1 || time < least) {
      least = time;
      best = splits;
    }
  }
  return best;
}

// For queries, negatives ≥ 1. planes: copies of a query in operands of element_bytes, its parts.
inline InfoNCEPlan info_nce_plan(int64_t queries, int64_t negatives, int64_t dim, int element_bytes,
                                 int planes, const Limits& limits) {
  InfoNCEPlan plan;
  plan.wide = dim > kNarrowColumns || planes > 1 || element_bytes == 4;
  plan.rows = info_nce_rows(plan.wide);
  plan.tile = info_nce_tile(element_bytes);
  plan.planes = planes;
  plan.dim = (dim + 15) / 16 * 16;
  plan.query_tiles = (queries + plan.rows - 1) / plan.rows;
  plan.tiles = (negatives + plan.tile - 1) / plan.tile;
  const auto lay = [&](int chunk, int stages) {
    plan.chunk = int(plan.dim < chunk ? plan.dim : chunk);
    plan.chunks = int((plan.dim + plan.chunk - 1) / plan.chunk);
    // An odd number of 16 bytes: eight rows at a time are read from different banks.
    plan.pitch = plan.chunk * element_bytes + 16;
    plan.query_bytes = int64_t(plan.rows) * planes * plan.pitch;
    plan.stages = stages;
    plan.stage_bytes = int64_t(plan.tile) * (plan.pitch + 4);
    if (plan.chunks > 1) plan.stage_bytes += plan.query_bytes;
    plan.shared_bytes = stages * plan.stage_bytes + (plan.chunks > 1 ? 0 : plan.query_bytes);
    const int64_t fit =
        (limits.shared_per_block + kReservedBytes) / (plan.shared_bytes + kReservedBytes);
    plan.resident = int(fit < 2 ? fit : 2);  // registers allow no more
    return plan.resident;
  };
  for (int chunk = plan.wide ? kWideColumns : kNarrowColumns;; chunk /= 2) {
    if (chunk < 32) return InfoNCEPlan();
    const int resident = lay(chunk, 2);
    if (resident == 0) continue;
    if (lay(chunk, 3) < resident) lay(chunk, 2);
    break;
  }
  plan.threads = kInfoNCEThreads;
  plan.splits = info_nce_splits(plan, queries, limits.multiprocessors);

  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t first = at;
    at += (bytes + 255) / 256 * 256;
    return first;
  };
  take(plan.tiles * plan.tile * 4);
  plan.queries_at = take(plan.query_tiles * plan.rows * planes * plan.dim * element_bytes);
  plan.finished_at = take(4);
  plan.losses_at = take(queries * 4);
  plan.sums_at = take(plan.splits * queries * 8);
  if (plan.splits > 1) plan.means_at = take(plan.splits * queries * plan.dim * 4);
  plan.workspace_bytes = at;
  return plan;
}

}  // namespace cuda
}  // namespace logo
