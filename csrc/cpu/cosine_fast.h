// The cosine loss of one image and its gradient in O(crops · D).
//
// The pairs of one kind have one weight, so partners enter through the sum of their unit vectors
// (math.h, cosine_with_sum): T of the targets, R of the features that repel. The gradient W·X then
// needs no crops × crops product: an image is read for its norms, read for T and R and the inner
// products with them, and read once more while its gradient is written, the last two from cache.
#pragma once

#include "cpu/cosine_layout.h"
#include "cpu/image.h"
#include "logo/math.h"

namespace logo {
namespace cpu {
namespace {

template <class T>
class FastCosine {
 public:
  // Rows besides the image's: T, R, and U = lg_weight T + ll_weight R for local crops that are
  // attracted and repelled at once.
  enum Buffer { kTargets = 0, kFeatures = 1, kBoth = 2, kBuffers = 3 };

  FastCosine(const Layout& layout, bool streaming)
      : at_(layout),
        y_partner_(layout.y_repelled() ? kBoth : kTargets),
        writes_(layout.p.grad_global.present() || layout.p.grad_local.present() ||
                layout.p.grad_features.present()),
        image_(layout.p.dim, layout.rows, kBuffers, layout.globals + 2 * layout.locals, 0, true) {
    image_.set_streaming(streaming);
  }

  bool reserve() {
    const size_t bytes = image_.scratch_bytes() + 5 * Scratch::bytes<T>(at_.rows) +
                         Scratch::bytes<T>(padded_products()) +
                         Scratch::bytes<Vector<T>>(padded_products());
    if (!scratch_.reserve(bytes)) return false;
    image_.attach(scratch_);
    inverse_ = scratch_.take<T>(at_.rows);
    own_ = scratch_.take<T>(at_.rows);
    limits_ = scratch_.take<T>(at_.rows);
    weights_ = scratch_.take<T>(at_.rows);
    other_ = scratch_.take<T>(at_.rows);
    products_ = scratch_.take<T>(padded_products());
    totals_ = scratch_.take<Vector<T>>(padded_products());
    return true;
  }

  // False where a norm leaves the range in which squares are safe; then nothing has been written.
  bool run(int64_t image, bool has_next, double* per_image) {
    image_.clear();
    at_.add_rows(image_, image, has_next);
    switch (image_.dtype()) {
      case DType::bf16: return run_on<bf16>(image, has_next, per_image);
      case DType::f16: return run_on<f16>(image, has_next, per_image);
      default: return run_on<T>(image, has_next, per_image);
    }
  }

 private:
  // Row is the dtype of the rows as they are read: their own, or T from a panel.
  template <class Row>
  bool run_on(int64_t image, bool has_next, double* per_image) {
    if constexpr (sizeof(T) == 8 && sizeof(Row) != 8) {
      return false;  // does not occur: halves are in place beside fp32 arithmetic alone
    } else {
      return evaluate<Row>(image, has_next, per_image);
    }
  }

  template <class Row>
  bool evaluate(int64_t image, bool has_next, double* per_image) {
    square<Row>(has_next && !writes_);
    for (int row = 0; row < at_.rows; ++row) {
      const T squared = products_[row];
      if (squares_well(squared)) {
        inverse_[row] = 1 / T(__builtin_sqrt(squared));
      } else if (squared == 0 && image_.is_zero(row)) {
        inverse_[row] = 0;
      } else {
        return false;
      }
    }
    multiply_with_sums<Row>();

    float* const scale = at_.row_scale(image);
    const double gg = pull_globals(image, scale);
    double lg = pull_locals(image, scale == nullptr ? nullptr : scale + at_.globals);
    double ll = 0;
    if (at_.repulsion) {
      ll = products_[at_.rows + kFeaturesSquared];  // Σ over i and j; take away i = j
      for (int i = 0; i < at_.locals; ++i) ll -= inverse_[at_.r + i] != 0;
      if (at_.y_repelled()) lg = products_[at_.rows + kFeaturesTargets];
    }
    if (!at_.own_features) {
      push_features(image, scale == nullptr ? nullptr : scale + at_.globals + at_.locals);
    }
    at_.write_terms(image, gg, lg, ll, per_image);
    if (writes_) image_.write_sums(has_next);
    return true;
  }

  // Products wanted besides those of each row with its partner's sum: R·R, R·T, and x_i·t_i.
  enum { kFeaturesSquared = 0, kFeaturesTargets = 1, kInner = 2 };
  int padded_products() const { return (at_.rows + kInner + at_.globals + 3) / 4 * 4; }

  // ‖row‖² of all rows into products_; `fetch` the next image meanwhile.
  template <class Row>
  void square(bool fetch) {
    for (int i = 0; i < padded_products(); ++i) totals_[i] = Vector<T>{};
    image_.columns(kColumns, [&](int64_t columns) {
      if (fetch) image_.fetch_next(columns);
      int row = 0;
      for (; row + 4 <= at_.rows; row += 4) square_rows<Row, 4>(row, columns);
      for (; row < at_.rows; ++row) square_rows<Row, 1>(row, columns);
    });
    for (int i = 0; i < at_.rows; i += 4) sum4(totals_ + i, products_ + i);
  }
  template <class Row, int M>
  void square_rows(int first, int64_t columns) {
    const Row* row[M];
    Vector<T> low[M], high[M];
    for (int i = 0; i < M; ++i) {
      row[i] = static_cast<const Row*>(image_.rows()[first + i]);
      low[i] = totals_[first + i];
      high[i] = Vector<T>{};
    }
    for (int64_t d = 0; d < columns; d += kStrip<T>) {
#pragma GCC unroll 4
      for (int i = 0; i < M; ++i) {
        const Vector<T> a = load_as<T>(row[i] + d), b = load_as<T>(row[i] + d + kLanes<T>);
        low[i] += a * a;
        high[i] += b * b;
      }
    }
    for (int i = 0; i < M; ++i) totals_[first + i] = low[i] + high[i];
  }

  // T, R and U into their buffers and the inner products of all rows with them, strip by strip:
  // a row is used for the product while it is still in the L1 cache from the sum.
  template <class Row>
  void multiply_with_sums() {
    using V = Vector<T>;
    constexpr int kLane = kLanes<T>;
    const int count = padded_products();
    for (int i = 0; i < count; ++i) totals_[i] = V{};
    V squared{}, crossed{};
    // Copies in registers: for all the compiler knows, the stores below change the members.
    const T lg = T(at_.lg_weight), ll = T(at_.ll_weight);
    const T* const inverse = inverse_;
    V* const totals = totals_;
    const int globals = at_.globals, locals = at_.locals, rows = at_.rows, r = at_.r;
    const int t = at_.t, x = at_.x, y = at_.y;
    const bool repulsion = at_.repulsion, repelled = at_.y_repelled(), apart = !at_.own_targets;
    image_.columns(at_.p.dim, [&](int64_t columns) {
      const void* const* const rows_at = image_.rows();
      const auto row = [rows_at](int i) { return static_cast<const Row*>(rows_at[i]); };
      T* const sum_t = image_.buffer(kTargets);
      T* const sum_r = image_.buffer(kFeatures);
      T* const sum_u = image_.buffer(kBoth);
      for (int64_t d = 0; d < columns; d += kStrip<T>) {
        V t_low{}, t_high{};
        for (int i = t; i < t + globals; ++i) {
          t_low += load_as<T>(row(i) + d) * inverse[i];
          t_high += load_as<T>(row(i) + d + kLane) * inverse[i];
        }
        store2(t_low, t_high, sum_t + d, false);
        V y_low = t_low, y_high = t_high;  // the local crops' partner
        if (repulsion) {
          V low{}, high{};
          for (int i = r; i < r + locals; ++i) {
            low += load_as<T>(row(i) + d) * inverse[i];
            high += load_as<T>(row(i) + d + kLane) * inverse[i];
          }
          squared += low * low;
          squared += high * high;
          crossed += low * t_low;
          crossed += high * t_high;
          if (repelled) {
            y_low = t_low * lg + low * ll;
            y_high = t_high * lg + high * ll;
            store2(y_low, y_high, sum_u + d, false);
          } else {
            store2(low, high, sum_r + d, false);
            for (int i = r; i < r + locals; ++i) {
              const V product = load_as<T>(row(i) + d) * low;
              totals[i] += load_as<T>(row(i) + d + kLane) * high + product;
            }
          }
        }
        for (int i = y; i < y + locals; ++i) {
          const V product = load_as<T>(row(i) + d) * y_low;
          totals[i] += load_as<T>(row(i) + d + kLane) * y_high + product;
        }
        for (int i = 0; i < globals; ++i) {
          const V x_low = load_as<T>(row(x + i) + d), x_high = load_as<T>(row(x + i) + d + kLane);
          const V product = x_low * t_low;
          totals[x + i] += x_high * t_high + product;
          if (apart) {
            const V inner = x_low * load_as<T>(row(t + i) + d);
            totals[rows + kInner + i] += x_high * load_as<T>(row(t + i) + d + kLane) + inner;
          }
        }
      }
    });
    totals_[rows + kFeaturesSquared] = squared;
    totals_[rows + kFeaturesTargets] = crossed;
    for (int i = 0; i < count; i += 4) sum4(totals_ + i, products_ + i);
  }

  // Each asks for the gradient of its rows and returns the sum of their cosines.

  double pull_globals(int64_t image, float* scale) {
    const T weight = T(at_.gg_weight);
    double sum = 0;
    for (int i = 0; i < at_.globals; ++i) {
      const int row = at_.x + i;
      const T dot = products_[row], inverse = inverse_[row];
      own_[row] = 0;
      if (at_.own_targets) {  // T holds x_i itself, which pulls nowhere
        sum += cosine_with_sum(dot, inverse, weight, weights_ + row, own_ + row) - (inverse != 0);
      } else {  // T holds t_i, which is no partner of x_i: taken away again
        const T inner = products_[at_.rows + kInner + i] * inverse_[at_.t + i];
        sum += cosine_with_sum(dot - inner, inverse, weight, weights_ + row, own_ + row);
        other_[row] = -weights_[row] * inverse_[at_.t + i];
      }
    }
    ask(at_.p.grad_global, at_.rows + kTargets, at_.x, !at_.own_targets, at_.x_weights(), scale,
        image);
    return at_.globals > 1 ? sum : 0;
  }

  double pull_locals(int64_t image, float* scale) {
    const T weight = at_.y_repelled() ? T(1) : T(at_.lg_weight);  // U has the weights in it
    return with_sum(at_.p.grad_local, at_.y, y_partner_, weight, at_.y_weights(), scale, image);
  }

  void push_features(int64_t image, float* scale) {
    with_sum(at_.p.grad_features, at_.r, kFeatures, T(at_.ll_weight), at_.r_weights(), scale,
             image);
  }

  double with_sum(const Rows& gradient, int first, int partner, T weight, double bound,
                  float* scale, int64_t image) {
    double sum = 0;
    for (int row = first; row < first + at_.locals; ++row) {
      own_[row] = 0;
      sum += cosine_with_sum(products_[row], inverse_[row], weight, weights_ + row, own_ + row);
    }
    ask(gradient, at_.rows + partner, first, false, bound, scale, image);
    return sum;
  }

  void ask(const Rows& gradient, int partner, int first, bool less_target, double bound,
           float* scale, int64_t image) {
    const bool fp16 = gradient.dtype == DType::f16;
    for (int i = 0; scale != nullptr && i < int(gradient.count); ++i) {
      if (!fp16) {
        scale[i] = 1;
        continue;
      }
      const int exponent = fp16_exponent(bound * double(inverse_[first + i]));
      scale[i] = float(ldexp(1.0, exponent));
      const T factor = T(ldexp(1.0, -exponent));
      weights_[first + i] *= factor;
      own_[first + i] *= factor;
      if (less_target) other_[first + i] *= factor;
      limits_[first + i] = exponent < 0 ? T(65504) : T(65504) * factor;
    }
    image_.add_sums(weights_ + first, partner, 1, own_ + first, first,
                    less_target ? other_ + first : nullptr, at_.t, fp16 ? limits_ + first : nullptr,
                    gradient, image);
  }

  const Layout& at_;
  int y_partner_;  // buffer whose product with a local crop is wanted
  bool writes_;
  Scratch scratch_;
  Image<T> image_;
  T* inverse_ = nullptr;         // [rows] 1/‖row‖, 0 for a zero row
  T* own_ = nullptr;             // [rows] coefficient of a row in its own gradient
  T* products_ = nullptr;        // [rows] with T, R or U, then those of the enum above
  Vector<T>* totals_ = nullptr;  // their accumulators
  T* limits_ = nullptr;          // [rows] largest magnitude of an fp16 gradient as stored
  T* weights_ = nullptr;         // [rows] coefficient of the partners' sum in a row's gradient
  T* other_ = nullptr;           // [rows] of the target that is no partner
};

}  // namespace
}  // namespace cpu
}  // namespace logo
