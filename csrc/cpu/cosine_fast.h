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
  // Rows besides those of the image: T, R, and what pulls a local crop that is also repelled,
  // U = lg_weight T + ll_weight R.
  enum Buffer { kTargets = 0, kFeatures = 1, kBoth = 2, kBuffers = 3 };

  FastCosine(const Layout& layout, Tile* tiles, bool streaming)
      : at_(layout),
        norms_(tiles),
        y_partner_(layout.y_repelled() ? kBoth : kTargets),
        writes_(layout.p.grad_global.present() || layout.p.grad_local.present() ||
                layout.p.grad_features.present()),
        image_(make_image()) {
    image_.set_streaming(streaming);
  }

  bool reserve() {
    const int64_t width = at_.own_targets ? 1 : at_.globals;
    const size_t bytes = image_.scratch_bytes() + 3 * Scratch::bytes<T>(at_.rows) +
                         Scratch::bytes<T>(at_.rows + at_.globals * width) +
                         Scratch::bytes<T>(padded_products()) +
                         Scratch::bytes<Vector<T>>(padded_products());
    if (!scratch_.reserve(bytes)) return false;
    image_.attach(scratch_);
    inverse_ = scratch_.take<T>(at_.rows);
    own_ = scratch_.take<T>(at_.rows);
    limits_ = scratch_.take<T>(at_.rows);
    weights_ = scratch_.take<T>(at_.rows + at_.globals * width);
    products_ = scratch_.take<T>(padded_products());
    totals_ = scratch_.take<Vector<T>>(padded_products());
    return true;
  }

  // False where a norm leaves the range in which squares are safe: then nothing has been written.
  bool run(int64_t image, bool has_next, double* per_image) {
    image_.clear();
    at_.add_rows(image_, image, has_next);
    image_.multiply(norms_, has_next && !writes_);
    for (int row = 0; row < at_.rows; ++row) {
      const T squared = image_.squared_norm(row);
      if (squares_well(squared)) {
        inverse_[row] = 1 / T(__builtin_sqrt(squared));
      } else if (squared == 0 && image_.is_zero(row)) {
        inverse_[row] = 0;
      } else {
        return false;
      }
    }
    multiply_with_sums();

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

 private:
  Image<T> make_image() {
    norms_.diagonal(0, at_.rows);
    return Image<T>(at_.p.dim, at_.rows, kBuffers, at_.globals + 2 * at_.locals,
                    norms_.accumulators(), true);
  }

  // Products wanted besides those of each row with its partner's sum: R·R, R·T, and x_i·t_i.
  enum { kFeaturesSquared = 0, kFeaturesTargets = 1, kInner = 2 };
  int padded_products() const { return (at_.rows + kInner + at_.globals + 3) / 4 * 4; }

  // T, R and U into their buffers and the inner products of all rows with them, strip by strip:
  // a row is used for the product while it is still in the L1 cache from the sum.
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
      const T* const* const row = image_.row(0);
      T* const sum_t = image_.buffer(kTargets);
      T* const sum_r = image_.buffer(kFeatures);
      T* const sum_u = image_.buffer(kBoth);
      for (int64_t d = 0; d < columns; d += kStrip<T>) {
        V t_low{}, t_high{};
        for (int i = t; i < t + globals; ++i) {
          t_low += load(row[i] + d) * inverse[i];
          t_high += load(row[i] + d + kLane) * inverse[i];
        }
        store2(t_low, t_high, sum_t + d, false);
        V y_low = t_low, y_high = t_high;  // what pulls the local crops
        if (repulsion) {
          V low{}, high{};
          for (int i = r; i < r + locals; ++i) {
            low += load(row[i] + d) * inverse[i];
            high += load(row[i] + d + kLane) * inverse[i];
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
              const V product = load(row[i] + d) * low;
              totals[i] += load(row[i] + d + kLane) * high + product;
            }
          }
        }
        for (int i = y; i < y + locals; ++i) {
          const V product = load(row[i] + d) * y_low;
          totals[i] += load(row[i] + d + kLane) * y_high + product;
        }
        for (int i = 0; i < globals; ++i) {
          const V x_low = load(row[x + i] + d), x_high = load(row[x + i] + d + kLane);
          const V product = x_low * t_low;
          totals[x + i] += x_high * t_high + product;
          if (apart) {
            const V inner = x_low * load(row[t + i] + d);
            totals[rows + kInner + i] += x_high * load(row[t + i] + d + kLane) + inner;
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
    const int width = at_.own_targets ? 1 : at_.globals;
    T* const weights = weights_ + at_.rows;
    double sum = 0;
    for (int i = 0; i < at_.globals; ++i) {
      const int row = at_.x + i;
      const T dot = products_[row], inverse = inverse_[row];
      T* const w = weights + i * width;
      own_[row] = 0;
      if (at_.own_targets) {  // T holds x_i itself, which pulls nowhere
        sum += cosine_with_sum(dot, inverse, weight, w, own_ + row) - (inverse != 0);
        continue;
      }
      // T holds t_i, which is no partner of x_i: the others one by one
      const T inner = products_[at_.rows + kInner + i] * inverse_[at_.t + i];
      T on_sum;
      sum += cosine_with_sum(dot - inner, inverse, weight, &on_sum, own_ + row);
      for (int j = 0; j < at_.globals; ++j) w[j] = j == i ? T(0) : on_sum * inverse_[at_.t + j];
    }
    ask(at_.p.grad_global, weights, at_.own_targets ? at_.rows + kTargets : at_.t, width, at_.x,
        at_.x_weights(), scale, image);
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
    ask(gradient, weights_ + first, at_.rows + partner, 1, first, bound, scale, image);
    return sum;
  }

  void ask(const Rows& gradient, T* weights, int partners, int width, int first, double bound,
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
      for (int k = 0; k < width; ++k) weights[i * width + k] *= factor;
      own_[first + i] *= factor;
      limits_[first + i] = exponent < 0 ? T(65504) : T(65504) * factor;
    }
    image_.add_sums(weights, partners, width, own_ + first, first, fp16 ? limits_ + first : nullptr,
                    gradient, image);
  }

  const Layout& at_;
  DotPlan norms_;
  int y_partner_;  // buffer whose product with a local crop is wanted
  bool writes_;
  Scratch scratch_;
  Image<T> image_;
  T* inverse_ = nullptr;         // [rows] 1/‖row‖, 0 for a zero row
  T* own_ = nullptr;             // [rows] coefficient of a row in its own gradient
  T* products_ = nullptr;        // [rows] with T, R or U, then those of the enum above
  Vector<T>* totals_ = nullptr;  // their accumulators
  T* limits_ = nullptr;          // [rows] largest magnitude of an fp16 gradient as stored
  T* weights_ = nullptr;         // [rows] coefficients of sums, then [G, G] of single targets
};

}  // namespace
}  // namespace cpu
}  // namespace logo
