"""What the backend says of itself, and what importing it costs."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from kernels import OPERATORS
from logo_kernels.backends.protocol import Request
from logo_kernels.backends.triton import OPERATIONS
from logo_kernels.backends.triton.tiles import MAX_ROWS, Tile, tile_for


def request_of(device: str, *dtypes: torch.dtype, crops: int = 10) -> Request:
    return Request("cosine", device, frozenset(dtypes), crops, 128)


def test_serves_what_it_says(triton_backend, device) -> None:
    assert triton_backend.missing() is None
    for dtypes in ((torch.float32,), (torch.bfloat16, torch.float32), (torch.float16,)):
        assert triton_backend.refuses(request_of(device.type, *dtypes, crops=MAX_ROWS)) is None


def test_refuses_with_a_reason(triton_backend, device) -> None:
    other = "cuda" if device.type == "cpu" else "cpu"
    assert other in triton_backend.refuses(request_of(other, torch.float32))
    assert "float64" in triton_backend.refuses(
        request_of(device.type, torch.float64, torch.float32)
    )
    reason = triton_backend.refuses(request_of(device.type, torch.float32, crops=MAX_ROWS + 1))
    assert str(MAX_ROWS) in reason


def test_refuses_what_a_device_is_too_old_for(triton_backend, device, monkeypatch) -> None:
    """By the device of the tensors, whichever is current and whatever others there are."""
    capabilities = {0: (7, 5), 1: (9, 0)}
    monkeypatch.setattr("logo_kernels.backends.triton._capability", capabilities.__getitem__)
    asked = request_of(device.type, torch.float32)
    reason = triton_backend.refuses(asked)
    assert "8.0" in reason
    assert "cuda:0 has 7.5" in reason
    assert triton_backend.refuses(asked._replace(device_index=1)) is None


def test_every_operation_has_a_function() -> None:
    """The table's names are those of the operators, and of the operation in place."""
    ours = {name for name in OPERATORS if not name.startswith("test_")}  # of tests/test_operators
    assert set(OPERATIONS) == {*ours, "scale_"}
    for module, function in OPERATIONS.values():
        found = importlib.import_module(f"logo_kernels.backends.triton.{module}")
        assert callable(getattr(found, function))


def python(code: str, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=kept | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_no_triton() -> None:
    out = python("""
        import sys
        import logo_kernels
        logo_kernels.available_backends()
        print(any(name.startswith("logo_kernels.backends.triton.cosine") for name in sys.modules))
    """)
    assert out == "False"


def test_without_triton() -> None:
    out = python("""
        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
        import logo_kernels
        print(logo_kernels.available_backends()["triton"])
    """)
    assert "pip install triton" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_gpu() -> None:
    out = python("import logo_kernels; print(logo_kernels.available_backends()['triton'])")
    assert "CUDA device" in out
    assert "TRITON_INTERPRET=1" in out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient", [False, True])
def test_every_tile_is_one_that_triton_takes(dtype, gradient) -> None:
    """Powers of two that cover the rows; products no smaller than `tl.dot` takes."""
    depth = 16  # in fp32 too before Triton 3.9
    for rows in range(1, MAX_ROWS + 1):
        for dim in (1, 15, 16, 17, 64, 100, 128, 256, 512, 1000, 1024, 1025, 2048, 2049, 100_000):
            tile: Tile = tile_for(rows, dim, dtype, dtype.itemsize, gradient)
            for value in (tile.v_pad, tile.block_d, tile.split, tile.rescue_d, tile.num_warps):
                assert value & (value - 1) == 0
                assert value > 0
            assert tile.v_pad >= max(16, rows)
            assert tile.block_d // tile.split >= depth
            assert tile.rescue_d >= depth
            assert tile.num_warps <= 16
            assert tile.num_stages >= 1


def test_the_public_function(device) -> None:
    """Through dispatch and autograd, against the reference."""
    import logo_kernels

    losses = []
    for backend in ("triton", "reference"):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(3, 2, 20, generator=generator).to(device).requires_grad_()
        y = torch.randn(3, 4, 20, generator=generator).to(device).requires_grad_()
        loss = logo_kernels.logo_loss(x, y, backend=backend, repulsion_weight=0.1)
        (3 * loss).backward()
        similarity = logo_kernels.block_cosine_similarity(x, backend=backend)
        similarity.square().sum().backward()
        losses.append((loss.detach(), similarity.detach(), x.grad, y.grad))
    for got, right in zip(*losses, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-6)
