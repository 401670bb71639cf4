#include "fiber.h"

// The checked longjmp takes a jump to another stack for a mistake.
#undef _FORTIFY_SOURCE
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

struct Fiber {
  jmp_buf jump;
  ucontext_t context;
  char* stack = nullptr;
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;
  bool started = false;  // its loop over bodies exists
  bool within = false;   // a body
};

std::vector<std::unique_ptr<Fiber>> fibers;
void (*fiber_body)(int);
int current;

void allocate_stack(Fiber& fiber, size_t number) {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) std::abort();
  mprotect(memory, 4096, PROT_NONE);  // a stack that overflows must not reach the next one
  fiber.stack = static_cast<char*>(memory) + 4096;
  // Tops at different offsets, since at equal ones all threads' frames fall on the same few lines
  // of the cache.
  fiber.stack_bytes = kStackBytes - 4096 - (number * 9 % 64) * 128;
}

#if defined(__SANITIZE_ADDRESS__)

// The sanitizer is told of every change of stack. It intercepts longjmp, and unpoisons the frames
// that it takes to be left.
ucontext_t scheduler_context;
const void* scheduler_bottom;
size_t scheduler_size;

void arrived_in_fiber(Fiber& fiber) {
  __sanitizer_finish_switch_fiber(fiber.sanitizer, &scheduler_bottom, &scheduler_size);
}
void jump_to_scheduler(Fiber& fiber) {
  __sanitizer_start_switch_fiber(&fiber.sanitizer, scheduler_bottom, scheduler_size);
  swapcontext(&fiber.context, &scheduler_context);
  arrived_in_fiber(fiber);
}
void jump_to(Fiber& fiber) {
  void* own = nullptr;
  __sanitizer_start_switch_fiber(&own, fiber.stack, fiber.stack_bytes);
  swapcontext(&scheduler_context, &fiber.context);
  __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
}
void forget_frames(Fiber& fiber) {
  fiber.sanitizer = nullptr;
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);
}

#else

// swapcontext would save the signal mask by a system call each time.
jmp_buf scheduler_jump;

void arrived_in_fiber(Fiber&) {}
void jump_to_scheduler(Fiber& fiber) {
  if (_setjmp(fiber.jump) == 0) _longjmp(scheduler_jump, 1);
}
void jump_to(Fiber& fiber) {
  if (_setjmp(scheduler_jump) != 0) return;
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}
void forget_frames(Fiber&) {}

#endif

// One loop for all bodies to come: to begin a context anew costs several system calls.
void fiber_main(unsigned number) {
  Fiber& fiber = *fibers[number];
  arrived_in_fiber(fiber);
  for (;;) {
    fiber.within = true;
    fiber_body(int(number));
    fiber.within = false;
    jump_to_scheduler(fiber);
  }
}

}  // namespace

void prepare_fibers(int count, void (*body)(int)) {
  fiber_body = body;
  while (int(fibers.size()) < count) {
    fibers.push_back(std::make_unique<Fiber>());
    allocate_stack(*fibers.back(), fibers.size());
  }
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = *fibers[i];
    if (fiber.started && !fiber.within) continue;
    forget_frames(fiber);
    fiber.started = fiber.within = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = fiber.stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, reinterpret_cast<void (*)()>(fiber_main), 1, unsigned(i));
  }
}

bool switch_to_fiber(int number) {
  current = number;
  Fiber& fiber = *fibers[number];
  jump_to(fiber);
  fiber.started = true;
  return !fiber.within;
}

void switch_back() { jump_to_scheduler(*fibers[current]); }

}  // namespace emulation
