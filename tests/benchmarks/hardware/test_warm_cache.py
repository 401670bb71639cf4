"""What is compiled on a GPU is compiled beforehand."""

from pathlib import Path

import pytest

import bench_cosine
import bench_info_nce
import bench_overhead
from hardware import warm_cache


def test_whatever_is_compiled_on_a_gpu_is_compiled_beforehand():
    jobs = list(warm_cache.jobs("cuda"))
    assert [name for name, _ in jobs[: len(warm_cache.MODULES)]] == list(warm_cache.MODULES)
    of_info_nce = [case for name, case in jobs if name == "bench_info_nce"]
    assert of_info_nce == list(bench_info_nce.CASES["cuda"])
    timed = {path.stem for path in Path(bench_cosine.__file__).parent.glob("bench_*.py")}
    assert timed == {*warm_cache.MODULES, "bench_training_step"}  # whose peer is not compiled


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("bench_overhead", bench_overhead.COSINE),
        ("bench_info_nce", bench_info_nce.InfoNCECase(2, 2, 2, 5, 8, "float32", "")),
    ],
)
def test_compiled_beforehand(monkeypatch, name, case):
    """Each compiled peer runs once with the inputs of its case; eager ones do not."""
    ran = []
    monkeypatch.setattr(
        "torch.compile", lambda function, **options: lambda *crops: ran.append(function) or 1 / 0
    )
    line = warm_cache.warm((name, case), "cpu")
    compiled = list(bench_info_nce.QUEUE.values()) if name == "bench_info_nce" else []
    assert ran[1:] == compiled  # ours is the first; overhead has no peers
    assert line == f"{case.id}: {2 + len(compiled)} compiled, {1 + len(compiled)} failed"
