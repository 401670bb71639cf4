// Asynchronous copies into shared memory. Each lands either at once or as late as it may, by the
// seed: the first shows a buffer that is filled while in use, the second one that is read early.
#pragma once

#include <cstdint>

namespace emulation {

void copy_async(void* shared, const void* global);  // 16 bytes
void copy_commit();
void copy_wait(int pending);

void arrivals_init(uint64_t* arrivals, uint32_t count);
void arrivals_fence_init();
void arrivals_expect(uint64_t* arrivals, uint32_t bytes);
void arrivals_wait(uint64_t* arrivals, uint32_t parity);
void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t* arrivals);

}  // namespace emulation
