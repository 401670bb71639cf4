// Shared memory of the block that runs. Bytes that nobody has written are NaN in every format.
#pragma once

#include <cstddef>
#include <string>

namespace emulation {

constexpr size_t kMostShared = 256 << 10;

void start_shared(size_t dynamic_bytes);
// A report of writes around dynamic shared memory; empty if there were none.
std::string check_guards();

void poison(void* address, size_t bytes);
// Whether all the bytes lie in shared memory; if not, *why says where they lie.
bool within_shared(const void* address, size_t bytes, std::string* why);
std::string name_shared(const void* address);

}  // namespace emulation
