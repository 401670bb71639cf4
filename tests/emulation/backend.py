"""The CUDA kernels as a backend for CPU tensors, through the emulator. For tests alone."""

from types import ModuleType

import pytest

from logo_kernels.backends import BACKENDS
from logo_kernels.backends.cuda import CudaBackend

from .build import load


class EmulatedBackend(CudaBackend):
    """Everything of the `cuda` backend but the compiler and the hardware."""

    name = "emulated"
    device_type = "cpu"

    @property
    def library(self) -> ModuleType:
        return load("_emulated")

    def missing(self) -> str | None:
        return None


# One for all tests: the choice of a backend is remembered by its name.
EMULATED = EmulatedBackend()


def emulate(monkeypatch: pytest.MonkeyPatch, architecture: int, seed: int = 0) -> EmulatedBackend:
    """Adds the backend "emulated" for the length of a test."""
    EMULATED.library.reset()
    EMULATED.library.settings.architecture = architecture
    EMULATED.library.settings.seed = seed
    monkeypatch.setitem(BACKENDS, EMULATED.name, EMULATED)
    return EMULATED
