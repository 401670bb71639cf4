"""Kernels run in Triton's interpreter where there is no GPU; and what several modules use."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

# Before anything imports triton: it decides when a kernel is decorated.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

pytest.importorskip("triton")

from logo_kernels.backends.reference import ReferenceBackend
from logo_kernels.backends.triton import TritonBackend
from logo_kernels.backends.triton.environment import interpreted


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if interpreted() else "cuda")


@pytest.fixture(scope="session")
def kernels() -> TritonBackend:
    return TritonBackend()


@pytest.fixture(scope="session")
def reference() -> ReferenceBackend:
    return ReferenceBackend()


@pytest.fixture
def with_splits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Plans of info_nce are as they are, but for so many splits, or fewer, of the negatives."""
    from logo_kernels.backends.triton import info_nce as module
    from logo_kernels.backends.triton.info_nce_plan import Plan, plan_for

    def plan_with(splits: int) -> None:
        def planned(*arguments: Any) -> Plan:
            plan = plan_for(*arguments)
            tiles = -(-arguments[1] // plan.shape.block_k)
            per_split = -(-tiles // splits)
            return plan._replace(splits=-(-tiles // per_split), tiles_per_split=per_split)

        monkeypatch.setattr(module, "plan_for", planned)

    return plan_with


@pytest.fixture(scope="session")
def assert_as_exact() -> Callable[..., None]:
    """Error against float64 at most twice that of eager PyTorch in the same dtype, plus a floor."""

    def check(name: str, got: Tensor, exact: Tensor, eager: Tensor, floor: float = 0.0) -> None:
        got, exact, eager = got.double(), exact.double(), eager.double()
        assert got.shape == exact.shape, f"{name}: {list(got.shape)}, not {list(exact.shape)}"
        assert torch.isfinite(got).all(), f"{name} is not finite"
        if got.numel() == 0:
            return
        size = exact.abs().amax().item()
        error = (got - exact).abs().amax().item()
        allowed = 2 * (eager - exact).abs().amax().item() + 2e-6 * size + floor
        assert error <= allowed, (
            f"{name}: error {error:.3g}, allowed {allowed:.3g}, size {size:.3g}"
        )

    return check
