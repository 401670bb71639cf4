// What the CUDA half of the build knows of itself. The kernels come next; this file makes the build
// compile, link cudart statically and report, with and without nvcc, from the first version on.
#include "logo/launch.h"

#define LOGO_TEXT_(...) #__VA_ARGS__
#define LOGO_TEXT(...) LOGO_TEXT_(__VA_ARGS__)

namespace logo {
namespace cuda {

#if defined(__CUDA_ARCH_LIST__)
const char* architectures() { return LOGO_TEXT(__CUDA_ARCH_LIST__); }  // "800,900,1000"
#else
const char* architectures() { return "unknown"; }
#endif

}  // namespace cuda
}  // namespace logo
