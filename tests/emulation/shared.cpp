#include "shared.h"

#include <cstdint>
#include <cstring>

#include "emulation/run.h"

// The linker's names for the ends of the section of __shared__ variables; null without one.
extern "C" {
extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emulation {
namespace {

constexpr size_t kGuard = 8192;
constexpr uint32_t kPoison = 0xfff7fffb;  // NaN as fp32, and each half as bf16 and as fp16
constexpr uint32_t kCanary = 0x7ffd7ffe;  // so too

// Aligned to 128 and to no more: a kernel may count on nothing that its wrapper does not promise.
alignas(256) unsigned char memory[kGuard + 128 + kMostShared + kGuard];
unsigned char* const dynamic = memory + kGuard + 128;
size_t dynamic_size = 0;

void fill(void* address, uint32_t pattern, size_t bytes) {
  auto* to = static_cast<unsigned char*>(address);
  size_t done = 0;
  for (; done + 4 <= bytes; done += 4) std::memcpy(to + done, &pattern, 4);
  std::memcpy(to + done, &pattern, bytes - done);
}

bool intact(const unsigned char* guard, size_t i) {
  return guard[i] == reinterpret_cast<const unsigned char*>(&kCanary)[i % 4];
}

}  // namespace

unsigned char* dynamic_shared() { return dynamic; }

void poison(void* address, size_t bytes) { fill(address, kPoison, bytes); }

void start_shared(size_t dynamic_bytes) {
  dynamic_size = dynamic_bytes;
  fill(dynamic - kGuard, kCanary, kGuard);
  poison(dynamic, dynamic_size);
  fill(dynamic + dynamic_size, kCanary, kGuard);
  if (__start_emulated_shared != nullptr) {
    poison(__start_emulated_shared, __stop_emulated_shared - __start_emulated_shared);
  }
}

std::string check_guards() {
  const std::string size = std::to_string(dynamic_size) + " bytes of dynamic shared memory";
  for (size_t i = 0; i < kGuard; ++i) {
    if (!intact(dynamic - kGuard, i)) {
      return "write out of bounds: up to " + std::to_string(kGuard - i) + " bytes before the " +
             size;
    }
  }
  for (size_t i = kGuard; i-- > 0;) {
    if (!intact(dynamic + dynamic_size, i)) {
      return "write out of bounds: up to " + std::to_string(i + 1) + " bytes past the end of the " +
             size;
    }
  }
  return "";
}

bool within_shared(const void* address, size_t bytes, std::string* why) {
  const auto* first = static_cast<const char*>(address);
  const auto* base = reinterpret_cast<const char*>(dynamic);
  const auto* last = first + bytes;
  if (first >= base && last <= base + dynamic_size) return true;
  if (first >= __start_emulated_shared && last <= __stop_emulated_shared) return true;
  *why = std::to_string(bytes) + " bytes at " + name_shared(address) + ", of " +
         std::to_string(dynamic_size);
  return false;
}

std::string name_shared(const void* address) {
  const auto* at = static_cast<const char*>(address);
  if (at >= __start_emulated_shared && at < __stop_emulated_shared) {
    return "static shared byte " + std::to_string(at - __start_emulated_shared);
  }
  const ptrdiff_t offset = at - reinterpret_cast<const char*>(dynamic);
  if (offset < -(1 << 24) || offset > 1 << 24) return "an address outside shared memory";
  return "dynamic shared byte " + std::to_string(offset);
}

}  // namespace emulation
