"""What `pytest benchmarks` runs: which cases, in which order, without whom, and what it files."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import bench_affinity
import bench_cosine
import bench_info_nce
import bench_similarity
import bench_training_step
from harness import report
from logo_kernels import available_backends, backends


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_listed_cases(device):
    modules = (
        bench_cosine, bench_similarity, bench_info_nce, bench_affinity, bench_training_step
    )  # fmt: skip
    every = [case for module in modules for case in module.CASES[device]]
    assert len({case.id for case in every}) == len(every)
    assert all(case.why for case in every)
    assert sum(case.smoke for case in every) == 1
    assert {"float32", "bfloat16"} <= {case.dtype for case in bench_cosine.CASES[device]}
    assert {True, False} == {case.view_major for case in bench_cosine.CASES[device]}
    assert {case.id for case in every} >= set(report.SPEED.values())  # the README's five


def conftest_of_the_benchmarks():
    path = Path(bench_cosine.__file__).with_name("conftest.py")
    spec = importlib.util.spec_from_file_location("conftest_of_the_benchmarks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_backend_is_left_out_everywhere(monkeypatch):
    """`--without`: neither auto's choice, nor there to be named."""
    for backend in backends.BACKENDS.values():
        monkeypatch.setattr(backend, "missing", lambda: None)
    options = {"--without": ["cuda"], "--simd": None}
    conftest_of_the_benchmarks().pytest_configure(SimpleNamespace(getoption=options.get))
    assert {name for name, reason in available_backends().items() if reason} == {"cuda"}
    assert available_backends()["cuda"] == "left out by --without cuda"


def test_the_first_cases_of_all_operations_come_first(tmp_path):
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", Path(bench_cosine.__file__).parent, "--co", "-q",
         "--device=cuda", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True,
    ).stdout  # fmt: skip
    files = [line.split("::")[0].rpartition("/")[2] for line in listed.splitlines() if "::" in line]
    assert len(files) > 15
    assert set(files[: len(set(files))]) == set(files)
    of_cosine = [line for line in listed.splitlines() if "test_cosine[" in line]
    names = [line.partition("[")[2].rstrip("]") for line in of_cosine]
    assert names == [case.id for case in bench_cosine.CASES["cuda"]]


def test_rows_survive_an_interrupt(tmp_path):
    """What was measured before it is filed, and of the case that it ends, nothing."""
    (tmp_path / "test_them.py").write_text(
        "import time\nfrom harness.timing import Pace, take_turns\n"
        "PACE = Pace(1e-4, 0.1, 2, 3)\n\n"
        "def test_first(benchmark):\n"
        "    benchmark.extra_info['case'] = 'whole'\n"
        "    take_turns(benchmark, {'ours': lambda: None}, time.perf_counter, PACE)\n\n"
        "def test_second(benchmark):\n"
        "    left = iter([None] * 4)\n"
        "    def step():\n"
        "        if next(left, 'none') == 'none':\n            raise KeyboardInterrupt\n"
        "    take_turns(benchmark, {'ours': step}, time.perf_counter, PACE)\n"
    )
    folder = Path(bench_cosine.__file__).parent
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    # In what it takes for a worker of pytest-xdist, pytest-benchmark times and files nothing.
    inherited = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test_them.py", "--benchmark-json=rows.json"],
        cwd=tmp_path, capture_output=True, text=True, env={**inherited, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["benchmarks"]
    assert [row["extra_info"] for row in rows] == [{"case": "whole"}]


@pytest.mark.parametrize(
    ("name", "behind"),
    [
        ("report", "harness.report"),
        ("ledger", "hardware.ledger"),
        ("hardware_check", "hardware.check"),
        ("static_report", "hardware.static_report"),
    ],
)
def test_commands(name, behind):
    """`python benchmarks/<name>.py`"""
    assert importlib.import_module(name).main is importlib.import_module(behind).main
