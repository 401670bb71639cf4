// Scratch memory of one thread: one aligned block, carved up. No std:: here, see macros.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace logo {
namespace cpu {
namespace {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(block_); }

  // Grows to `bytes` and loses its contents. False when memory is short.
  bool reserve(size_t bytes) {
    used_ = 0;
    if (bytes <= size_) return true;
    free(block_);
    block_ = nullptr;
    size_ = 0;
    void* block = nullptr;
    if (posix_memalign(&block, kAlignment, bytes) != 0) return false;
    block_ = static_cast<char*>(block);
    size_ = bytes;
    return true;
  }

  template <class T>
  static size_t bytes(int64_t count) {
    return (size_t(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }

  template <class T>
  T* take(int64_t count) {
    T* const out = reinterpret_cast<T*>(block_ + used_);
    used_ += bytes<T>(count);
    return out;
  }

 private:
  static constexpr size_t kAlignment = 64;
  char* block_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
};

}  // namespace
}  // namespace cpu
}  // namespace logo
