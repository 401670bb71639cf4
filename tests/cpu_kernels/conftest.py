"""The C++ kernels of the CPU, once per instruction set that is there."""

from collections.abc import Callable, Iterator

import pytest
import torch

from logo_kernels.backends import BACKENDS, Backend
from logo_kernels.backends.extension import extension


@pytest.fixture(params=extension.simds() if extension else ())
def cpu(request: pytest.FixtureRequest) -> Iterator[Backend]:
    before = extension.current_simd()
    extension.use_simd(request.param)
    yield BACKENDS["cpu"]
    extension.use_simd(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many there are, for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
