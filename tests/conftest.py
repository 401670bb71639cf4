"""What all tests share. Triton runs in its interpreter where there is no GPU; that has to be said
before anything imports it."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread for each worker: threads that wait for each other's turn on too few cores take
    # a hundred times longer. Tests that are about threads set their number themselves.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from logo_kernels.backends.extension import extension

CPU_VARIANTS = [f"cpu-{simd}" for simd in (extension.simds() if extension else ())]


@pytest.fixture(params=["reference", *CPU_VARIANTS, "triton"])
def backend(request):
    """Every backend that can work here, the C++ one once per instruction set.

    Yields (name, device).
    """
    from logo_kernels import available_backends

    name, _, simd = request.param.partition("-")
    reason = available_backends()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    if not simd:
        yield name, device
        return
    before = extension.current_simd()
    extension.use_simd(simd)
    yield name, device
    extension.use_simd(before)
