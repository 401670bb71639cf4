// The limits of a device that plans depend on.
#pragma once

#include <cstdint>

namespace logo {
namespace cuda {

struct Limits {
  int multiprocessors;
  int64_t shared_per_block;
};

// Shared memory that CUDA takes of each block for itself; a multiprocessor has as much more than
// one block may ask for.
constexpr int64_t kReservedBytes = 1024;

}  // namespace cuda
}  // namespace logo
