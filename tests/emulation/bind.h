// Python's view of the emulator, for every module that contains it.
#pragma once

#include <pybind11/pybind11.h>

// Adds `settings`, `statistics()`, `launches()`, `reset()`, `last_message()` and
// `current_device()`.
void bind_emulation(pybind11::module_& m);
