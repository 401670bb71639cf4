// The crops of one image as rows of compute type T (float or double), and the two products that
// cosines and their gradients consist of: inner products between rows, and sums of rows with small
// weights.
//
// An image is some tens of rows, so its rows stay in the L2 cache between the two: memory is read
// once and each gradient written once. Rows are used in place where they have the compute type and
// fill whole vectors; else they are converted into a panel.
#pragma once

#include "cpu/dots.h"
#include "cpu/memory.h"
#include "cpu/simd.h"
#include "cpu/sums.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

// Where every row meets many others, rows go through a panel in the L1 cache in any case, a chunk
// of columns at a time, with a stride that is no power of two: in place, ten rows of 2048 floats
// would fall on the same sets of the cache and evict one another. It takes this much of 32 KB, but
// never fewer columns than kLeastChunk, below which loading and storing accumulators would outweigh
// the products.
constexpr int64_t kL1PanelBytes = 24 * 1024;
constexpr int64_t kLeastChunk = 128;
// Where each row is used a few times only, the panel may take this much of a 1 MB L2 cache.
constexpr int64_t kL2PanelBytes = 256 * 1024;
// Columns that are worked on at a time: a row of them, 2 KB of fp32, is still in the L1 cache when
// the second use comes.
constexpr int64_t kColumns = 512;
// Gradients larger than this, an L2 cache, are streamed past the caches: their lines are not in
// reach anyway, and to fetch lines that are written whole would be waste (measured: a third less
// time at 4 MB, no difference at 10 MB).
constexpr int64_t kStreamingBytes = 1024 * 1024;

template <class T>
class Image {
 public:
  // `rows` counts all rows that add() will be given; `buffers`, rows besides, that belong to nobody
  // and are filled by the caller; `sums`, the most gradients that add_sums() will be asked for;
  // `accumulators`, the most of any plan. in_place: no panel where none is needed.
  Image(int64_t dim, int rows, int buffers, int sums, int accumulators, bool in_place)
      : dim_(dim),
        rows_(rows),
        buffers_(buffers),
        all_(rows + buffers),
        sums_(sums),
        accumulators_(accumulators),
        in_place_(in_place) {
    padded_ = (dim + kStrip<T> - 1) / kStrip<T> * kStrip<T>;
    const int64_t bytes = in_place ? kL2PanelBytes : kL1PanelBytes;
    chunk_ = bytes / int64_t(sizeof(T)) / rows / kLeastChunk * kLeastChunk;
    if (chunk_ < kLeastChunk) chunk_ = kLeastChunk;
    if (chunk_ > padded_) chunk_ = padded_;
    stride_ = chunk_ + 64 / int64_t(sizeof(T));  // one cache line on
  }

  size_t scratch_bytes() const {
    return Scratch::bytes<T>(rows_ * stride_) + Scratch::bytes<T>(buffers_ * padded_) +
           Scratch::bytes<Vector<T>>(accumulators_) + Scratch::bytes<T>(all_ * all_) +
           3 * Scratch::bytes<const void*>(all_) + 2 * Scratch::bytes<const char*>(rows_) +
           Scratch::bytes<const Rows*>(rows_) + Scratch::bytes<T>(all_ * sums_) +
           Scratch::bytes<Band>(sums_);
  }
  void attach(Scratch& scratch) {
    panel_ = scratch.take<T>(rows_ * stride_);
    buffer_ = scratch.take<T>(buffers_ * padded_);
    totals_ = scratch.take<Vector<T>>(accumulators_);
    dots_ = scratch.take<T>(all_ * all_);
    now_ = scratch.take<const void*>(all_);
    own_ = scratch.take<const void*>(all_);
    other_ = scratch.take<const void*>(all_);
    address_ = scratch.take<const char*>(rows_);
    next_ = scratch.take<const char*>(rows_);
    origin_ = scratch.take<const Rows*>(rows_);
    packed_ = scratch.take<T>(all_ * sums_);
    bands_ = scratch.take<Band>(sums_);
  }

  void clear() {
    count_ = band_count_ = packed_count_ = 0;
    loaded_ = -1;
    direct_ = in_place_;
    alike_ = true;
  }
  void add(const Rows& rows, int64_t image, bool has_next) {
    for (int64_t crop = 0; crop < rows.count; ++crop, ++count_) {
      origin_[count_] = &rows;
      address_[count_] = row_address(rows, image, crop);
      next_[count_] = row_address(rows, has_next ? image + 1 : image, crop);
    }
    alike_ = alike_ && rows.dtype == origin_[0]->dtype && rows.element_stride == 1;
    const bool loadable =
        rows.dtype == kDType<T> || (sizeof(T) == 4 && dtype_bytes(rows.dtype) == 2);
    direct_ = in_place_ && alike_ && loadable && dim_ == padded_;
  }
  // The dtype of rows as rows() gives them: their own if they are used in place, else T.
  DType dtype() const { return direct_ ? origin_[0]->dtype : kDType<T>; }

  // Calls work(count) for one run of columns after the other, of at most `width`, while rows()
  // are at its first column. `count` includes zero padding to whole strips.
  template <class Work>
  void columns(int64_t width, Work work) {
    if (!direct_ && width > chunk_) width = chunk_;
    for (int64_t first = 0; first < dim_;) {
      const int64_t count = point_at(first, width);  // less where the panel's chunk ends
      work(count);
      first += count;
    }
  }
  const void* const* rows() const { return now_; }
  T* buffer(int i) const { return buffer_ + i * padded_ + first_; }
  // Fetches these columns of the next image.
  void fetch_next(int64_t count) const { next_rows(true).strip(first_, int(count)); }

  // dots(i) for the pairs of the plan. `fetch` the rows of the next image meanwhile, which is for
  // calls without gradients: write_sums() does it where there are some.
  void find_dots(const DotPlan& plan, bool fetch) {
    const Prefetch prefetch = next_rows(fetch);
    for (int k = 0; k < plan.accumulators(); ++k) totals_[k] = Vector<T>{};
    columns(kColumns, [&](int64_t count) {
      prefetch.strip(first_, int(count));
      for (const Tile& tile : plan) {
        Vector<T>* const totals = totals_ + tile.offset;
        switch (tile.m) {
          case 1: accumulate_rows<T, 1>(tile, now_, count, totals); break;
          case 2: accumulate_rows<T, 2>(tile, now_, count, totals); break;
          case 3: accumulate_rows<T, 3>(tile, now_, count, totals); break;
          case 4: accumulate_rows<T, 4>(tile, now_, count, totals); break;
          default: accumulate_rows<T, kDotRows>(tile, now_, count, totals);
        }
      }
    });
    for (const Tile& tile : plan) {
      T sums[(kDotRows * kDotRows + 3) / 4 * 4];
      for (int k = 0; k < tile.m * tile.n; k += 4) sum4(totals_ + tile.offset + k, sums + k);
      for (int i = 0; i < tile.m; ++i) {
        for (int j = 0; j < tile.n; ++j) {
          if (tile.shape == Shape::triangle && j > i) continue;
          const int row = tile.a + i;
          const int column = tile.shape == Shape::diagonal ? row : tile.b + j;
          dots_[row * all_ + column] = dots_[column * all_ + row] = sums[i * tile.n + j];
        }
      }
    }
  }

  const T* dots(int row) const { return dots_ + row * all_; }  // ·[column]
  T squared_norm(int row) const { return dots_[row * all_ + row]; }

  // A row whose squared norm is 0 may be tiny rather than zero.
  bool is_zero(int row) const {
    const Rows& rows = *origin_[row];
    const int64_t step = rows.element_stride * dtype_bytes(rows.dtype);
    const char* at = address_[row];
    for (int64_t d = 0; d < dim_; ++d, at += step) {
      const bool zero = rows.dtype == DType::f64 ? *reinterpret_cast<const double*>(at) == 0
                        : rows.dtype == DType::f32
                            ? *reinterpret_cast<const float*>(at) == 0
                            : (*reinterpret_cast<const uint16_t*>(at) & 0x7fff) == 0;
      if (!zero) return false;
    }
    return true;
  }

  // Asks for grad_i = Σ_k weights[i * count + k] row_{first + k} + own[i] row_{own_first + i} +
  // other[i] row_{other_first + i}, to be written to the image's rows of `gradient`. own, other
  // null: none. limits null, or the largest magnitude of each row. They must live until
  // write_sums(). Rows of the first sum must have the compute type: buffers, or a panel's.
  void add_sums(const T* weights, int first, int count, const T* own, int own_first, const T* other,
                int other_first, const T* limits, const Rows& gradient, int64_t image) {
    for (int row = 0; row < int(gradient.count);) {
      const int left = int(gradient.count) - row;
      const int m = left >= 8 && kSumRows >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      T* const packed = packed_ + packed_count_;
      for (int k = 0; k < count; ++k) {
        for (int i = 0; i < m; ++i) packed[k * m + i] = weights[(row + i) * count + k];
      }
      packed_count_ += m * count;
      bands_[band_count_++] = {&gradient,
                               image,
                               packed,
                               own == nullptr ? nullptr : own + row,
                               other == nullptr ? nullptr : other + row,
                               limits == nullptr ? nullptr : limits + row,
                               row,
                               m,
                               first,
                               count,
                               own_first + row,
                               other_first + row};
      row += m;
    }
  }

  // Writes all gradients that were asked for; `fetch` the rows of the next image meanwhile.
  void write_sums(bool fetch) {
    columns(dim_, [&](int64_t padded) {
      const int64_t count = dim_ - first_ < padded ? dim_ - first_ : padded;
      Prefetch prefetch = next_rows(fetch);
      for (int k = 0; k < band_count_; ++k) {
        const Band& band = bands_[k];
        switch (band.m) {
          case 1: write<1>(band, count, prefetch); break;
          case 2: write<2>(band, count, prefetch); break;
          case 4: write<4>(band, count, prefetch); break;
          default: write<kSumRows>(band, count, prefetch);
        }
        prefetch = {};  // once is enough
      }
    });
  }

  void set_streaming(bool streaming) { streaming_ = streaming; }

 private:
  // Up to kSumRows rows of one gradient, which are summed together.
  struct Band {
    const Rows* gradient;
    int64_t image;
    const T* weights;  // [count, m]
    const T* own;      // [m] or null
    const T* other;    // [m] or null
    const T* limits;   // [m] or null
    int row, m;        // rows of the gradient
    int first, count;  // rows of the image
    int own_first, other_first;
  };

  Prefetch next_rows(bool fetch) const {
    if (!fetch || !alike_) return {};
    return {next_, count_, dtype_bytes(origin_[0]->dtype)};
  }

  // Points now_ at column `first` of every row; returns how many follow, with zero padding.
  int64_t point_at(int64_t first, int64_t width) {
    first_ = first;
    for (int i = 0; i < buffers_; ++i) now_[rows_ + i] = buffer(i);
    if (direct_) {
      for (int row = 0; row < rows_; ++row) {
        now_[row] = address_[row] + first * dtype_bytes(origin_[0]->dtype);
      }
      return padded_ - first < width ? padded_ - first : width;
    }
    const int64_t base = first / chunk_ * chunk_;
    if (base != loaded_) fill_panel(base);
    for (int row = 0; row < rows_; ++row) now_[row] = panel_ + row * stride_ + (first - base);
    const int64_t end = base + chunk_ < padded_ ? base + chunk_ : padded_;
    return end - first < width ? end - first : width;
  }

  void fill_panel(int64_t base) {
    const int64_t filled = dim_ - base < chunk_ ? dim_ - base : chunk_;
    const int64_t end = padded_ - base < chunk_ ? padded_ - base : chunk_;
    for (int row = 0; row < rows_; ++row) {
      T* const to = panel_ + row * stride_;
      convert(*origin_[row], address_[row], base, filled, to);
      for (int64_t d = filled; d < end; ++d) to[d] = 0;
    }
    loaded_ = base;
  }

  static void convert(const Rows& rows, const char* from, int64_t first, int64_t count, T* to) {
    const int64_t stride = rows.element_stride;
    switch (rows.dtype) {
      case DType::f32:
        return convert(reinterpret_cast<const float*>(from), stride, first, count, to);
      case DType::f64:
        return convert(reinterpret_cast<const double*>(from), stride, first, count, to);
      case DType::bf16:
        return convert(reinterpret_cast<const bf16*>(from), stride, first, count, to);
      case DType::f16: return convert(reinterpret_cast<const f16*>(from), stride, first, count, to);
    }
  }
  template <class Source>
  static void convert(const Source* from, int64_t stride, int64_t first, int64_t count, T* to) {
    from += first * stride;
    int64_t d = 0;
    if constexpr (sizeof(T) == 4 && sizeof(Source) <= 4) {
      if (stride == 1) {
        for (; d + kLanes<T> <= count; d += kLanes<T>) {
          const Vector<T> values = load_as_float(from + d);
          memcpy(to + d, &values, sizeof(values));
        }
      }
    }
    for (; d < count; ++d) to[d] = T(to_double(from[d * stride]));
  }

  template <int M>
  void write(const Band& band, int64_t count, const Prefetch& prefetch) {
    switch (band.gradient->dtype) {
      case DType::f32: return write_as<M, float>(band, count, prefetch);
      case DType::bf16: return write_as<M, bf16>(band, count, prefetch);
      case DType::f16: return write_as<M, f16>(band, count, prefetch);
      case DType::f64: return write_as<M, double>(band, count, prefetch);
    }
  }
  template <int M, class To>
  void write_as(const Band& band, int64_t count, const Prefetch& prefetch) {
    // fp64 gradients come from fp64 arithmetic, all others from fp32 (exact.h has the rest).
    if constexpr ((sizeof(T) == 8) == (sizeof(To) == 8)) {
      // Halves that are used in place are all of one dtype, that of their gradient.
      if constexpr (sizeof(To) == 2) {
        if (dtype() != kDType<T>) return write_from<M, To, To>(band, count, prefetch);
      }
      write_from<M, T, To>(band, count, prefetch);
    }
  }
  template <int M, class Row, class To>
  void write_from(const Band& band, int64_t count, const Prefetch& prefetch) {
    To* out[M];
    bool streaming = streaming_;
    for (int i = 0; i < M; ++i) {
      const char* const row = row_address(*band.gradient, band.image, band.row + i);
      out[i] = reinterpret_cast<To*>(const_cast<char*>(row)) + first_;
      streaming = streaming && reinterpret_cast<uintptr_t>(out[i]) % LOGO_VECTOR_BYTES == 0;
      if (band.own != nullptr) own_[i] = now_[band.own_first + i];
      if (band.other != nullptr) other_[i] = now_[band.other_first + i];
    }
    const Single<T> own = {band.own == nullptr ? nullptr : own_, band.own};
    const Single<T> other = {band.other == nullptr ? nullptr : other_, band.other};
    sum_rows<T, M, Row, To>(now_ + band.first, band.count, band.weights, own, other, out, count,
                            first_, streaming, band.limits, prefetch);
  }

  int64_t dim_, padded_;    // of the rows, and in whole strips
  int64_t chunk_, stride_;  // of the panel
  int64_t first_ = 0;       // column that now_ is at
  int64_t loaded_ = -1;     // first column of the panel
  int rows_, buffers_, all_, sums_, accumulators_;
  int count_ = 0, band_count_ = 0, packed_count_ = 0;
  bool in_place_;
  bool direct_ = true;              // all rows can be summed in place
  bool alike_ = true;               // all rows have one dtype and unit stride
  bool streaming_ = false;          // gradients bypass the caches
  T* panel_ = nullptr;              // [rows, stride]
  T* buffer_ = nullptr;             // [buffers, padded]
  Vector<T>* totals_ = nullptr;     // accumulators of the plan's tiles
  T* dots_ = nullptr;               // [all, all]
  const void** now_ = nullptr;      // [all] rows and buffers at column first_
  const void** own_ = nullptr;      // [all]
  const void** other_ = nullptr;    // [all]
  const char** address_ = nullptr;  // [rows]
  const char** next_ = nullptr;     // [rows] the same rows of the next image
  const Rows** origin_ = nullptr;   // [rows]
  T* packed_ = nullptr;             // [sums, all] weights in the order of use
  Band* bands_ = nullptr;           // [sums]
};

}  // namespace
}  // namespace cpu
}  // namespace logo
