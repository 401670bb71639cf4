// What the CUDA half of the build knows of itself. The kernels come next; this file makes the build
// compile, link cudart statically and report, with and without nvcc, from the first version on.
#include "logo/launch.h"

namespace logo {
namespace cuda {

// As CMake names them: "80-real, 90a-real, 100", the last one with PTX for what is newer.
const char* architectures() { return LOGO_CUDA_ARCHITECTURES; }

}  // namespace cuda
}  // namespace logo
