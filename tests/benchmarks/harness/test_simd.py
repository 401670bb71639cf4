"""One instruction set for ours, which is told, and for torch, which is started anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness import simd
from logo_kernels.backends.extension import extension

BENCHMARKS = Path(simd.__file__).parents[1]


CAPABLE = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


needs_avx2 = pytest.mark.skipif(not CAPABLE, reason="torch uses neither AVX2 nor AVX-512 here")


def test_a_process_is_held_by_its_environment(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")
    made = simd.environment("avx2")
    assert made["TORCHINDUCTOR_CACHE_DIR"] == "/cache_avx2"  # compiled for other instructions
    for name in simd.ENVIRONMENTS["avx2"]:
        monkeypatch.delenv(name, raising=False)
    assert not simd.is_held_to("avx2")
    for name, value in simd.ENVIRONMENTS["avx2"].items():
        assert not simd.is_held_to("avx2")  # by all of them, not by some
        monkeypatch.setenv(name, value)
        assert made[name] == value
    assert simd.is_held_to("avx2")


def test_torch_must_be_held_too(monkeypatch):
    monkeypatch.setattr(simd, "torch_simd", lambda: "avx512")
    before = extension.current_simd()
    with pytest.raises(RuntimeError, match="torch uses avx512 all the same"):
        simd.use("avx2")
    monkeypatch.setattr(simd, "extension", None)
    with pytest.raises(RuntimeError, match="needs the extension"):
        simd.use("avx2")
    assert extension.current_simd() == before


@needs_avx2
def test_everyone_is_held(tmp_path):
    """Ours, torch's kernels, its compiler, and the name under which results are filed."""
    script = """
from harness import machine, simd
from torch._inductor.cpu_vec_isa import pick_vec_isa
simd.use("avx2")
print(simd.current(), simd.torch_simd(), pick_vec_isa(), machine.device_name("cpu").split()[-1])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=BENCHMARKS, env=simd.environment("avx2"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["avx2", "avx2", "avx2", "AVX2"]


@needs_avx2
def test_the_benchmarks_start_themselves_again(tmp_path):
    """Collection imports everything and runs nothing; the plugin speaks in the second process."""
    script = "from harness import simd; print('held', simd.is_held_to('avx2'), simd.current())"
    (tmp_path / "plugin.py").write_text(f"def pytest_sessionfinish(): exec({script!r})")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", BENCHMARKS, "--simd=avx2", "--co", "-q",
         "-p", "no:cacheprovider", "-p", "plugin", "-k", "8x2x2x128"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("test_cosine[") == 2  # fp32 and bf16, listed once
    assert [line for line in done.stdout.splitlines() if "held" in line] == ["held True avx2"]
