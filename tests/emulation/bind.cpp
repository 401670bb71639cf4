#include "bind.h"

#include "emulation/host.h"
#include "emulation/run.h"

namespace py = pybind11;
using emulation::Settings;
using emulation::Statistics;

void bind_emulation(py::module_& m) {
  // Local, since two modules that each contain an emulator may be loaded at once.
  py::class_<Settings>(m, "Settings", py::module_local())
      .def_readwrite("seed", &Settings::seed)
      .def_readwrite("architecture", &Settings::architecture)
      .def_readwrite("multiprocessors", &Settings::multiprocessors)
      .def_readwrite("shared_per_block", &Settings::shared_per_block)
      .def_readwrite("shared_per_multiprocessor", &Settings::shared_per_multiprocessor)
      .def_readwrite("shared_reserved", &Settings::shared_reserved)
      .def_readwrite("threads_per_multiprocessor", &Settings::threads_per_multiprocessor);
  py::class_<Statistics>(m, "Statistics", py::module_local())
      .def_readonly("blocks", &Statistics::blocks)
      .def_readonly("threads", &Statistics::threads)
      .def_readonly("shared_bytes", &Statistics::shared_bytes)
      .def_readonly("barriers", &Statistics::barriers)
      .def_readonly("warp_collectives", &Statistics::warp_collectives)
      .def_readonly("mma", &Statistics::mma)
      .def_readonly("async_copies", &Statistics::async_copies)
      .def_readonly("bulk_copies", &Statistics::bulk_copies);
  m.attr("settings") = py::cast(&emulation::settings, py::return_value_policy::reference);
  m.def(
      "statistics",
      [](size_t before) {
        const auto& earlier = emulation::earlier;
        return before == 0 ? emulation::statistics : earlier.at(earlier.size() - before);
      },
      py::arg("before") = 0, "Of the last launch, or of one so many before it.");
  m.def("launches", [] { return emulation::launches; }, "Since the last reset.");
  m.def("last_message", &emulation::last_message);
  m.def("current_device", [] {
    int device = -1;
    cudaGetDevice(&device);
    return device;
  });
  m.def(
      "reset",
      [] {
        emulation::settings = Settings();
        emulation::statistics = Statistics();
        emulation::earlier.clear();
        emulation::launches = 0;
      },
      "Settings to their defaults, counters to zero.");
}
