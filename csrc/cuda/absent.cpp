// Stands for csrc/cuda where the build found no nvcc.
#include "logo/launch.h"

namespace logo {
namespace cuda {

const char* architectures() { return ""; }

}  // namespace cuda
}  // namespace logo
