"""Options and hooks of `pytest benchmarks --benchmark-only`.

pytest benchmarks --benchmark-only                      all cases of this machine's device
pytest benchmarks --benchmark-only -m smoke             one small case
pytest benchmarks --benchmark-only -k "cosine and 2048" some cases
pytest benchmarks --benchmark-only --simd avx2          as a CPU without AVX-512 would: ours, torch,
                                                        its compiler, oneDNN and MKL
... --benchmark-json=results.json                       what report.py reads; `report.py --record`
                                                        files each instruction set by itself
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch

from harness import machine, package, simd
from harness.timing import clock_of


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to measure; default: the GPU, if there is one",
    )  # fmt: skip
    parser.addoption(
        "--without", action="append", default=[], choices=("cuda", "triton"),
        help="a backend that is neither chosen nor measured; may be named again",
    )  # fmt: skip
    parser.addoption(
        "--simd", choices=tuple(simd.ENVIRONMENTS),
        help="the CPU's instructions, for ours and for torch; default: the widest that it has",
    )  # fmt: skip


def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """The same command once more, in a process where torch is held to `--simd`."""
    name = config.getoption("--simd")
    if name is None or simd.is_held_to(name):
        return None
    command = [sys.executable, "-m", "pytest", *map(str, config.invocation_params.args)]
    directory = config.invocation_params.dir
    return subprocess.run(
        command, env=simd.environment(name), cwd=directory, check=False
    ).returncode


def pytest_configure(config: pytest.Config) -> None:
    """Without a backend, auto goes on to the next: for the loss, and for backward's scaling."""
    for name in config.getoption("--without"):
        package.leave_out(name, f"left out by --without {name}")
    name = config.getoption("--simd")
    if name is not None and simd.is_held_to(name):
        try:
            simd.use(name)
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark per case of the device; each module names its cases in `CASES`."""
    chosen = metafunc.module.CASES[metafunc.config.getoption("--device")]
    metafunc.parametrize(
        "case",
        [
            pytest.param(case, id=case.id, marks=[pytest.mark.smoke] if case.smoke else [])
            for case in chosen
        ],
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """pytest-benchmark reads the same clock as everyone else.

    The first case of every operation comes before the second of any: if time runs out, each has
    its most important ones.
    """
    clock = clock_of(config.getoption("--device"))
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))
    seen: Counter[str] = Counter()
    place: dict[str, int] = {}
    for item in items:
        place[item.nodeid] = seen[item.path.name]
        seen[item.path.name] += 1
    items.sort(key=lambda item: place[item.nodeid])


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Ours in place of the plugin's, which would record the name of the host."""
    machine_info.clear()
    machine_info.update(machine.describe(config.getoption("--device")))


def pytest_benchmark_update_json(benchmarks: list, output_json: dict) -> None:
    """Drops the single rounds: the summaries of all contestants are in extra_info."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
    output_json["commit_info"] = {
        key: output_json["commit_info"].get(key) for key in ("id", "time", "dirty")
    }
    if output_json["machine_info"].get("cuda"):
        output_json["machine_info"]["after"] = machine.gpu_state()
