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
from lost_device import pytest_runtest_protocol  # noqa: F401
from support import Compiler

CPU_VARIANTS = [f"cpu-{simd}" for simd in (extension.simds() if extension else ())]
# The CUDA sources on the CPU: cp.async on sm_80, bulk copies on sm_90.
EMULATED_VARIANTS = ["emulated-80", "emulated-90"]


# Begun before all others, so that no long test is left to run alone at the end.
LONG = ("test_packaging", "test_bounds", "test_aot", "test_static", "trainer/", "test_verify")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONG))


@pytest.fixture(autouse=True)
def poisoned():
    """Fresh memory is full of NaN, whoever asks torch for it: what nobody writes shows.

    By torch's own switch, below all of its functions and graphs; so no operator is seen for it, but
    on a GPU a launch each. `torch.utils.deterministic.fill_uninitialized_memory = False` stops it.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def compiler():
    """Nothing is compiled yet, and nothing that a test compiles is left to the next one."""
    torch._dynamo.reset()
    yield Compiler()
    torch._dynamo.reset()


@pytest.fixture(params=["reference", *CPU_VARIANTS, "triton", "cuda", *EMULATED_VARIANTS])
def backend(request, monkeypatch):
    """Every backend that can work here, the C++ one once per instruction set.

    Yields (name, device).
    """
    from logo_kernels import available_backends

    name, _, variant = request.param.partition("-")
    if name == "emulated":
        from emulation.backend import emulate

        emulate(monkeypatch, int(variant))
    reason = available_backends()[name]
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    device = "cuda" if name in ("triton", "cuda") and torch.cuda.is_available() else "cpu"
    if name != "cpu":
        yield name, device
        return
    before = extension.current_simd()
    extension.use_simd(variant)
    yield name, device
    extension.use_simd(before)
