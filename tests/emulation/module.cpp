// The project's CUDA launchers on the emulator.
#include "bind.h"
#include "bindings.h"

PYBIND11_MODULE(_emulated, m) {
  bind_emulation(m);
  logo::bind_cuda(m);
}
