// Scratch memory of one thread: one aligned block, carved up. No std:: here, see macros.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

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
    return (size_t(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment + kGap;
  }

  template <class T>
  T* take(int64_t count) {
    T* const out = reinterpret_cast<T*>(block_ + used_);
    used_ += bytes<T>(count);
#if defined(__SANITIZE_ADDRESS__)
    const size_t size = size_t(count) * sizeof(T);
    __asan_unpoison_memory_region(out, size);
    __asan_poison_memory_region(reinterpret_cast<char*>(out) + size, bytes<T>(count) - size);
#endif
    return out;
  }

 private:
  static constexpr size_t kAlignment = 64;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGap = kAlignment;  // between arrays, where nobody may read or write
#else
  static constexpr size_t kGap = 0;
#endif
  char* block_ = nullptr;
  size_t size_ = 0;
  size_t used_ = 0;
};

}  // namespace
}  // namespace cpu
}  // namespace logo
