// InfoNCE's pairs before and after the pass over the negatives, image by image.
#pragma once

#include "cpu/finite.h"
#include "cpu/info_nce_pass.h"
#include "cpu/link.h"
#include "cpu/unit_row.h"
#include "logo/problem.h"

namespace logo {
namespace cpu {
namespace {

// The power of two by which losses, as large as 2/τ, are multiplied before they are summed in fp64.
template <class T>
inline double loss_unit(double temperature) {
  return sizeof(T) == 8 && temperature < 0x1p-508 ? 0x1p-512 : 1;
}

// One thread's pairs, image by image.
template <class T>
class Pairs {
 public:
  // queries [N, cut.row]: filled by `prepare`. per_image [3, B]: total, gg, lg.
  // In units of `loss_unit`.
  Pairs(const InfoNCEProblem& p, const Cut<T>& cut, const Softmax<T>& softmax, T* queries,
        double* per_image)
      : p_(p),
        cut_(cut),
        softmax_(softmax),
        unit_(loss_unit<T>(p.temperature)),
        queries_(queries),
        per_image_(per_image),
        row_(p.dim, cut.row),
        pairs_(p.crops() * p.positives.count),
        padded_((pairs_ + kLanes<T> - 1) / kLanes<T> * kLanes<T>) {}

  bool reserve() {
    const size_t units = Scratch::bytes<T>(p_.positives.count * cut_.row);
    const size_t numbers = 2 * Scratch::bytes<T>(padded_) + Scratch::bytes<double>(pairs_);
    if (!scratch_.reserve(units + numbers + row_.bytes())) return false;
    row_.attach(scratch_);
    units_ = scratch_.take<T>(p_.positives.count * cut_.row);
    gaps_ = scratch_.take<T>(padded_);
    losses_ = scratch_.take<T>(padded_);
    wide_ = scratch_.take<double>(pairs_);
    memset(gaps_, 0, size_t(padded_) * sizeof(T));
    return true;
  }

  // Unit queries, and their cosines with the positives, which `pull` keeps for the time being.
  void prepare(int64_t image) {
    const int64_t positives = p_.positives.count;
    for (int64_t k = 0; k < positives; ++k) {
      row_.read(p_.positives, image, k);
      row_.write(units_ + k * cut_.row);
    }
    T* cosine = pull(image);
    T* query = queries_ + image * p_.crops() * cut_.row;
    for (int64_t crop = 0; crop < p_.crops(); ++crop, query += cut_.row) {
      const bool global = crop < p_.global_crops.count;
      row_.read(global ? p_.global_crops : p_.local_crops, image,
                global ? crop : crop - p_.global_crops.count);
      row_.write(query);
      for (int64_t k = 0; k < positives; ++k) {
        *cosine++ = T(inner_product(query, units_ + k * cut_.row, cut_.row));
      }
    }
  }

  // Losses, and backward's weights of pairs, from the sums over the negatives.
  void finish(int64_t image, const Found<T>& found) {
    const int64_t positives = p_.positives.count;
    T* const pulls = pull(image);
    int64_t at = 0;
    for (int64_t crop = 0; crop < p_.crops(); ++crop) {
      const int64_t query = image * p_.crops() + crop;
      const LogSum lse =
          combine(cut_, softmax_, found, query, static_cast<T*>(p_.mean.data) + query * p_.dim);
      static_cast<T*>(p_.lse)[query] = finite<T>(lse.most / p_.temperature + lse.rest);
      for (int64_t k = 0; k < positives; ++k, ++at) {
        const double apart = (lse.most - double(pulls[at])) * unit_ / p_.temperature;
        wide_[at] = apart + lse.rest * unit_;
        gaps_[at] = finite<T>(wide_[at] / unit_);
      }
    }
    for (at = 0; at < padded_; at += kLanes<T>) {
      const Linked<T> pair = link<T>(Link::softplus, load(gaps_ + at));
      *reinterpret_cast<Vector<T>*>(losses_ + at) = pair.value;
      *reinterpret_cast<Vector<T>*>(gaps_ + at) = pair.slope;
    }
    if (p_.reduction == Reduction::pairs) {
      memcpy(static_cast<T*>(p_.total) + image * pairs_, losses_, size_t(pairs_) * sizeof(T));
    }
    write(image, pulls);
  }

 private:
  T* pull(int64_t image) const { return static_cast<T*>(p_.pull.data) + image * pairs_; }

  // In units of unit_. T has lost nothing but what it does not hold: so large a loss is its gap.
  double loss(int64_t at) const {
    return wide_[at] > 0x1p10 * unit_ ? wide_[at] : double(losses_[at]) * unit_;
  }

  void write(int64_t image, T* pulls) {
    const int64_t positives = p_.positives.count;
    const double globals = double(p_.global_crops.count), locals = double(p_.local_crops.count);
    const double share = p_.reduction == Reduction::mean ? 1 / double(p_.images) : 1;
    double gg = 0, lg = 0;
    for (int64_t crop = 0, at = 0; crop < p_.crops(); ++crop) {
      const bool global = crop < p_.global_crops.count;
      const T weight = T((global ? p_.gg_weight() : p_.lg_weight()) * share);
      double& sum = global ? gg : lg;
      for (int64_t k = 0; k < positives; ++k, ++at) {
        const bool pair = p_.is_pair(crop, k);
        pulls[at] = pair ? weight * gaps_[at] : T(0);
        if (pair) sum += loss(at);
      }
    }
    per_image_[image] = p_.gg_weight() * gg + p_.lg_weight() * lg;
    per_image_[p_.images + image] = globals > 1 ? gg / (globals * (globals - 1)) : 0;
    per_image_[2 * p_.images + image] = locals > 0 ? lg / (locals * double(positives)) : 0;
  }

  const InfoNCEProblem& p_;
  const Cut<T>& cut_;
  const Softmax<T>& softmax_;
  const double unit_;
  T* const queries_;
  double* const per_image_;
  UnitRow<T> row_;
  const int64_t pairs_, padded_;  // of one image, and in whole vectors
  Scratch scratch_;
  T* units_ = nullptr;      // [P, row]
  T* gaps_ = nullptr;       // [V, P] lse − s⁺, then 1 − σ
  T* losses_ = nullptr;     // [V, P]
  double* wide_ = nullptr;  // [V, P] lse − s⁺, in units of unit_
};

}  // namespace
}  // namespace cpu
}  // namespace logo
