// Random numbers for schedules: cheap, and the same on every machine.
#pragma once

#include <cstdint>

namespace emulation {

class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d) {
    for (int i = 0; i < 4; ++i) next();
  }
  uint32_t next() {
    state_ = state_ * 6364136223846793005 + 1442695040888963407;
    const uint32_t mixed = uint32_t((state_ >> 22) ^ state_) ^ uint32_t(state_ >> 33);
    return (mixed * 0x9e3779b1) ^ uint32_t(state_ >> 32);
  }
  uint32_t below(uint32_t count) { return uint32_t((uint64_t(next()) * count) >> 32); }
  bool one_in(uint32_t count) { return below(count) == 0; }

 private:
  uint64_t state_;
};

}  // namespace emulation
