"""Which backend serves what, and how a refusal reads."""

import re
import subprocess
import sys

import pytest
import torch

import logo_kernels
from logo_kernels import available_backends, logo_loss, verify
from logo_kernels.backends import BACKENDS, Backend, Request, choose
from logo_kernels.backends.preference import order
from support import crops

OPERATIONS = (*verify.OPERATIONS, "scale")  # as a request names them


class Stub(Backend):
    """A backend that only answers for itself."""

    def __init__(self, name, missing=None, refuses=None):
        self.name, self._missing, self._refuses = name, missing, refuses

    def missing(self):
        return self._missing

    def refuses(self, problem):
        return self._refuses

    cosine = similarity = similarity_backward = None


def stubs(**reasons):
    names = ("reference", "cpu", "triton", "cuda")
    return {name: Stub(name, *reasons.get(name, (None, None))) for name in names}


def problem(device="cuda", dtype=torch.float32, operation="cosine"):
    return Request(operation, device, frozenset([dtype]), 10, 2048)


@pytest.mark.parametrize(
    ("device", "reasons", "expected"),
    [
        ("cuda", {}, "cuda"),
        ("cuda", {"cuda": ("no nvcc", None)}, "triton"),
        ("cuda", {"cuda": (None, "fp64")}, "triton"),
        ("cuda", {"cuda": ("no nvcc", None), "triton": (None, "fp64")}, "reference"),
        ("cpu", {}, "cpu"),
        ("cpu", {"cpu": ("not built", None)}, "reference"),
        ("mps", {}, "reference"),
    ],
)
def test_auto_takes_the_fastest_that_serves(device, reasons, expected):
    assert choose("auto", problem(device), stubs(**reasons)).name == expected


@pytest.mark.parametrize(
    ("operation", "dtype", "expected"),
    [
        ("cosine", torch.bfloat16, "cuda"),
        ("cosine", torch.float32, "cuda"),
        ("similarity", torch.float16, "triton"),
        ("info_nce", torch.float32, "triton"),
        ("affinity", torch.bfloat16, "cuda"),
    ],
)
def test_auto_prefers_what_was_measured(operation, dtype, expected):
    assert choose("auto", problem(dtype=dtype, operation=operation), stubs()).name == expected


def test_every_operation_has_an_order():
    """In half precision and beyond."""
    for operation in OPERATIONS:
        for dtype in (torch.float16, torch.float32, torch.float64):
            names = order(problem(dtype=dtype, operation=operation))
            assert sorted(names) == ["cuda", "reference", "triton"]
            assert names[-1] == "reference"


@pytest.mark.parametrize("reasons", [("not built", None), (None, "no fp64")])
def test_a_named_backend_serves_or_raises(reasons):
    assert choose("triton", problem(), stubs()).name == "triton"
    with pytest.raises(RuntimeError, match=f"'triton'.*{reasons[0] or reasons[1]}.*auto"):
        choose("triton", problem(), stubs(triton=reasons))


@pytest.fixture
def rocm(monkeypatch):
    """A torch for AMD GPUs: their device type and capability look like NVIDIA's."""
    from logo_kernels.backends import cuda, triton

    monkeypatch.setattr("torch.version.hip", "6.4")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 4))
    monkeypatch.setattr(triton, "installed", lambda: True)
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    for module in (cuda, triton):
        module._missing.cache_clear()
    yield
    for module in (cuda, triton):
        module._missing.cache_clear()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_amd_gpus_have_the_reference(rocm, operation):
    asked = Request(operation, "cuda", frozenset([torch.bfloat16]), 10, 2048)
    assert choose("auto", asked, BACKENDS).name == "reference"
    for name in ("cuda", "triton"):
        with pytest.raises(RuntimeError, match=f"'{name}'.*NVIDIA GPUs.*ROCm build.*reference"):
            choose(name, asked, BACKENDS)


def test_every_backend_is_listed():
    answers = available_backends()
    assert list(answers) == list(BACKENDS) == ["reference", "cpu", "triton", "cuda"]
    assert answers["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in answers.values())


def test_named_backend_without_its_device():
    x, y, _, _ = crops(2, 2, 2, 8)
    reason = available_backends()["cuda"] or "it works on cuda tensors, and these are on 'cpu'"
    refusal = f"backend 'cuda' cannot serve this call: {reason}. backend='auto' falls back"
    with pytest.raises(RuntimeError, match=re.escape(refusal)):
        logo_loss(x, y, backend="cuda")


def test_import_does_not_need_the_extension_or_triton(tmp_path):
    """Without either, the reference serves, and the reasons say what to do."""
    script = """
import sys
sys.modules["logo_kernels._C"] = None
sys.modules["triton"] = None
import torch, logo_kernels
x = torch.randn(2, 2, 8, requires_grad=True)
logo_kernels.logo_loss(x).backward()
assert x.grad is not None
reasons = logo_kernels.available_backends()
assert reasons["reference"] is None
assert "pip install" in reasons["cpu"] and "pip install" in reasons["triton"], reasons
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


def test_command_line(tmp_path):
    """python -m logo_kernels: versions, devices, backends, reasons."""
    done = subprocess.run(
        [sys.executable, "-m", "logo_kernels"],
        check=True, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    lines = [line.strip() for line in done.stdout.splitlines()]
    for title in ("versions", "devices", "backends"):
        assert title in lines
    assert f"{'logo_kernels':<13} {logo_kernels.__version__}" in lines
    assert any(line.startswith(f"{'torch':<13} {torch.__version__}, ") for line in lines)
    assert any(line.startswith("cpu ") and "in use: " in line for line in lines)
    for name, reason in available_backends().items():
        told = "works" if reason is None else f"missing: {reason}"
        assert f"{name:<13} {told}" in lines


def test_gpus_of_one_machine_may_differ(monkeypatch):
    """What a device refuses stands beside it."""
    from contextlib import contextmanager

    from logo_kernels import __main__ as command

    current = []

    @contextmanager
    def device(index):
        current.append(index)
        yield

    class Choosy(Stub):
        def refuses(self, problem):
            return "this device is older" if current[-1] == 1 else None

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: (9 - index, 0))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setitem(BACKENDS, "cuda", Choosy("cuda"))
    monkeypatch.setitem(BACKENDS, "triton", Stub("triton", missing="not installed"))
    lines = command.devices()
    first = next(place for place, line in enumerate(lines) if "GPU 0" in line)
    assert "GPU 1, compute capability 8.0" in lines[first + 1]
    assert lines[first + 2].strip() == "cuda does not work here: this device is older"
