"""Builds, tests, sanitizes and measures on this machine's NVIDIA GPU, and writes the ledger.

    python benchmarks/hardware_check.py [--out DIR]

Under ten minutes, without network, with the torch, Triton and nvcc that are there; CUDA kernels are
built for this GPU alone. Tests and sanitizers run side by side, the benchmarks after them and by
themselves. Results go to
benchmarks/results/<device> (or DIR/<device>): benchmarks.json, table.md, chart.png, ledger.json and
one log per step. A step that fails does not stop the later ones; it shows in the exit status, and
no figure is recorded of a kernel whose tests or sanitizer runs failed.

Without a GPU it runs the Triton kernels through the interpreter and compiles them ahead of time,
runs the CUDA kernels through the emulator of tests/emulation where g++ is there, and reports what
nvcc makes of them where nvcc is. The ledger stays as it is, since nothing was verified on hardware.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import itertools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import ledger
import machine
import report
from steps import ABSENT, FAILED, PASSED, Command, Outcome, Steps

# The budgets of the steps add up to more than that: each is for a step that hangs, the deadline is
# for all together. Estimated for 16 cores: install 45 s (20 s of them nvcc, for one architecture;
# three take 60 s on 2 cores), small cases and peers 60 s, tests and sanitizers 150 s. The
# benchmarks have what is left, and begin with what is worth most.
SECONDS = 9.5 * 60
SECONDS_WITHOUT_GPU = 45 * 60  # interpreter and emulator are slow, and nobody pays for the machine
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
GPU_BACKENDS = ("triton", "cuda")
CUDA_TOOLS = "/usr/local/cuda/bin"  # not on every PATH
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "results", "*.egg-info", "*.so", "__pycache__"
)

# Which tests are a backend's: those whose first parameter names it, as the shared fixture of
# tests/conftest.py has it, and the folders that are about it alone. "cuda" by itself would also be
# the emulated tests of the same kernels, "emulated-80", and those of the choice among backends,
# which run no kernel.
SELECTED = {"triton": "[triton or triton_kernels", "cuda": "[cuda"}
NO_KERNEL_RUNS = "test_backends"
# Without those of nvcc's figures, which are of the checkout, and have a step of their own.
EMULATED = "([emulated or emulation or cuda_kernels) and not test_static"
OF_THE_EMULATOR = ("cuda_kernels", "emulation")

TestCounts = dict[str, dict[str, int]]  # backend -> {"passed": n, "failed": n}
Verdicts = dict[str, dict[str, str]]  # backend -> tool -> verdict; "plain" is without a tool


class Workplace:
    """A copy of the sources and the package installed from it, away from the checkout."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.source, self.site = folder / "source", folder / "site"
        shutil.copytree(ledger.ROOT, self.source, ignore=NOT_SOURCES)
        (self.source / "benchmarks/results").mkdir()
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), CUDA_TOOLS])
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.environment.pop("TRITON_INTERPRET", None)

    def install(self, seconds: float, architecture: str | None = None) -> None:
        """By pip, against the torch that is there; the bare sources serve where that fails.

        The CUDA kernels are built for one architecture, where one is given: three take three times
        as long, and the GPU needs one.
        """
        command = [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation",
            "--no-deps", "--target", self.site, self.source,
        ]  # fmt: skip
        environment = dict(self.environment)
        if architecture is not None:
            environment["CUDAARCHS"] = architecture
        (outcome,) = self.steps.run(Command("install", command, seconds, self.folder, environment))
        package = self.site if outcome.verdict == PASSED else self.source
        self.environment["PYTHONPATH"] = str(package)

    def tool(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment["PATH"])

    def python(self, name: str, seconds: float, *arguments: str | Path) -> Command:
        """This Python on the copy, outside the checkout."""
        command = [sys.executable, *arguments]
        return Command(name, command, seconds, self.folder, self.environment)

    @staticmethod
    def parallel() -> list[str]:
        """Most of a GPU test is compilation, which many cores share if pytest-xdist is there."""
        cores = min(8, (os.cpu_count() or 1) // 2)
        return ["-n", str(cores)] if cores > 1 and importlib.util.find_spec("xdist") else []

    def tests(
        self,
        name: str,
        seconds: float,
        keyword: str,
        junit: Path,
        left_out: tuple[str, ...] = OF_THE_EMULATOR,
    ) -> Command:
        """The package's tests that the keyword selects; not those of trainer and benchmarks."""
        tests = self.source / "tests"
        ignored = [f"--ignore={tests / folder}" for folder in ("trainer", "benchmarks", *left_out)]
        return self.python(
            name, seconds, "-m", "pytest", tests, "-c", self.source / "pyproject.toml",
            "--rootdir", self.source, "-p", "no:cacheprovider", "-q",
            "-m", "not slow", "-k", keyword, "--continue-on-collection-errors", *ignored,
            f"--junitxml={junit}", *self.parallel(),
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where results go")
    out: Path = parser.parse_args(arguments).out
    has_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory(prefix="hardware-check-") as folder:
        if has_gpu:
            return on_gpu(Path(folder), out.resolve())
        return without_gpu(Path(folder))


def without_gpu(folder: Path) -> int:
    steps = Steps(folder / "logs", SECONDS_WITHOUT_GPU)
    work = Workplace(folder, steps)
    work.install(300)
    work.environment["TRITON_INTERPRET"] = "1"
    steps.run(small_cases(work, "triton", 120))
    steps.run(work.tests("interpreter", 720, "triton", folder / "tests.xml"))
    work.environment.pop("TRITON_INTERPRET")
    steps.run(work.python("ahead of time", 600, work.source / "tests/triton_kernels/aot.py"))
    emulate(work, folder / "emulated.xml")
    report_statically(work)
    for outcome in steps.outcomes:
        if outcome.name in ("ahead of time", "static report") and outcome.log is not None:
            print(outcome.log.read_text(errors="replace"))
    print("No NVIDIA GPU here: nothing was verified on hardware, and the ledger stays as it is.")
    return 0 if steps.all_passed() else 1


def emulate(work: Workplace, junit: Path) -> None:
    """The CUDA sources through the emulator, which g++ builds first."""
    if work.tool("g++") is None:
        work.steps.absent("emulated")
    else:
        work.steps.run(emulated_tests(work, junit))


def emulated_tests(work: Workplace, junit: Path) -> Command:
    return work.tests("emulated", 900, EMULATED, junit, left_out=("triton_kernels",))


def report_statically(work: Workplace) -> None:
    """What nvcc makes of the CUDA kernels: registers, spills, instructions."""
    script = work.source / "benchmarks/static_report.py"
    if not script.is_file() or work.tool("nvcc") is None:
        work.steps.absent("static report")
        return
    work.steps.run(work.python("static report", 300, script))


def on_gpu(folder: Path, out: Path) -> int:
    facts = machine.describe("cuda")
    results = out / machine.folder_name(facts["device"])
    steps = Steps(results / "logs", SECONDS)
    work = Workplace(folder, steps)
    work.install(150, architecture_of(torch.cuda.get_device_capability()))
    junit = folder / "tests.xml"
    verdicts = run_and_compile(work)
    sanitize_and_test(work, verdicts, junit)
    counts = count_tests(junit)
    without = [f"--without={backend}" for backend in not_worth_measuring(counts, verdicts)]
    measured = folder / "benchmarks.json"
    steps.run(
        work.python(
            "benchmarks", 400, "-m", "pytest", work.source / "benchmarks", "--benchmark-only",
            "--device=cuda", *without, "-p", "no:cacheprovider", "-q",
            f"--benchmark-json={measured}",
        )
    )  # fmt: skip
    # The copy is what was tested, whatever has become of the checkout meanwhile.
    made = ledger_of(facts, counts, verdicts, rows_of(measured), work.source)
    write_results(results, made, measured)
    print(ledger.table(ledger.status()) if out == report.RESULTS else f"results: {results}")
    return 0 if steps.all_passed() else 1


def small_cases(work: Workplace, backend: str, seconds: float) -> Command:
    script = work.source / "benchmarks/small_cases.py"
    return work.python(f"small cases {backend}", seconds, script, backend)


def run_and_compile(work: Workplace) -> Verdicts:
    """Every kernel once without a tool, while the peers are compiled: what sanitizers run next
    is then compiled too.
    """
    backends = sorted({ledger.backend_of(kernel) for kernel in ledger.kernels(work.source)})
    peers = work.python("compile the peers", 120, work.source / "benchmarks/warm_cache.py")
    outcomes = work.steps.run(*(small_cases(work, backend, 120) for backend in backends), peers)
    return {
        backend: {"plain": outcome.verdict}
        for backend, outcome in zip(backends, outcomes, strict=False)
    }


def sanitize_and_test(work: Workplace, verdicts: Verdicts, junit: Path) -> None:
    """Adds the tools' verdicts. Side by side: most of it is torch's start and compilation."""
    sanitizer = work.tool("compute-sanitizer")
    commands = {}
    for backend, tool in itertools.product(verdicts, SANITIZERS):
        if sanitizer is None:
            verdicts[backend][tool] = work.steps.absent(f"{tool} {backend}").verdict
        else:
            commands[backend, tool] = sanitized(work, sanitizer, backend, tool)
    outcomes = work.steps.run(gpu_tests(work, junit), *commands.values())[1:]
    for (backend, tool), outcome in zip(commands, outcomes, strict=True):
        if outcome.verdict == FAILED and not concluded(outcome):
            (outcome,) = work.steps.run(commands[backend, tool])  # once more, by itself
        verdicts[backend][tool] = outcome.verdict


def concluded(outcome: Outcome) -> bool:
    """Whether a sanitizer came to its end: it may have had no connection to its program."""
    return outcome.log is not None and "SUMMARY:" in outcome.log.read_text(errors="replace")


def gpu_tests(work: Workplace, junit: Path) -> Command:
    """Those that run kernels on hardware; most of their time is Triton's compilation."""
    selected = " or ".join(SELECTED.values())
    return work.tests("tests", 240, f"({selected}) and not {NO_KERNEL_RUNS}", junit)


def sanitized(work: Workplace, sanitizer: str, backend: str, tool: str) -> Command:
    """The small cases under a tool, each tensor in an allocation of its own, so that a step
    beyond it is seen.
    """
    plain = small_cases(work, backend, 200)
    return replace(
        plain,
        name=f"{tool} {backend}",
        words=[sanitizer, "--tool", tool, "--error-exitcode", "9", *plain.words],
        environment={**plain.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def architecture_of(capability: tuple[int, int]) -> str:
    """What CMakeLists.txt builds that serves this GPU, in CMake's words."""
    if capability == (9, 0):
        return "90a-real"
    return "100" if capability > (9, 0) else "80-real"  # with PTX, for what is newer than sm_100


def not_worth_measuring(counts: TestCounts, verdicts: Verdicts) -> list[str]:
    """Backends that failed, if another passed: it must not fall with auto's first choice.

    Where none passed, all are measured: nothing is recorded, but the log has the figures.
    """
    passed = [
        backend
        for backend in verdicts
        if ledger.passed({"tests": counts[backend], "sanitizer": for_the_ledger(verdicts[backend])})
    ]
    return [backend for backend in verdicts if passed and backend not in passed]


def for_the_ledger(verdicts: dict[str, str]) -> dict[str, str]:
    """A tool that ran out of time has shown nothing: it counts as failed."""
    return {
        tool: verdict if verdict in (PASSED, ABSENT) else "failed"
        for tool, verdict in verdicts.items()
    }


def count_tests(junit: Path) -> TestCounts:
    """Passed and failed tests per backend; a failure that is no backend's counts for all."""
    counts = {backend: {"passed": 0, "failed": 0} for backend in GPU_BACKENDS}
    if not junit.is_file():
        return counts
    for case in ElementTree.parse(junit).iter("testcase"):
        owner = backend_of_test(case.get("classname", ""), case.get("name", ""))
        if owner == "emulated":
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            for backend in GPU_BACKENDS if owner is None else (owner,):
                counts[backend]["failed"] += 1
        elif case.find("skipped") is None and owner is not None:
            counts[owner]["passed"] += 1
    return counts


def backend_of_test(module: str, name: str) -> str | None:
    """Whose kernels a test runs, on hardware or "emulated"; None if the name does not tell."""
    path = module.split(".")
    first_parameter = re.match(r"[^\[]*\[(\w+)[-\]]", name)
    backend = first_parameter.group(1) if first_parameter else None
    if backend == "emulated" or any(folder in path for folder in OF_THE_EMULATOR):
        return "emulated"
    if "triton_kernels" in path:
        return "triton"
    return backend if backend in GPU_BACKENDS and NO_KERNEL_RUNS not in path else None


def rows_of(measured: Path) -> list[dict[str, Any]]:
    return report.load(measured)[1] if measured.is_file() else []


def ledger_of(
    facts: dict[str, Any],
    counts: TestCounts,
    verdicts: Verdicts,
    rows: list[dict[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """The ledger of this run: every kernel of the tree `root`, and figures of those that passed."""
    now = datetime.datetime.now(datetime.timezone.utc)
    entries: dict[str, Any] = {}
    for kernel, files in ledger.kernels(root).items():
        backend = ledger.backend_of(kernel)
        entries[kernel] = {
            "sha256": ledger.source_hash(files),
            "tests": counts[backend],
            "sanitizer": for_the_ledger(verdicts[backend]),
        }
    shown = [kept for row in rows if (kept := report.restricted(row, passed_in(entries)))]
    for kernel, entry in entries.items():
        if ledger.passed(entry):
            entry["benchmarks"] = {
                row["case"]: figures
                for row in shown
                if (figures := figures_of(kernel, row)) is not None
            }
    return {
        "device": facts["device"],
        "driver": facts.get("driver_version", "unknown"),
        "clocks": {key: value for key, value in facts.items() if key.startswith("clocks.")}
        or {"unknown": "nvidia-smi did not answer"},
        "versions": {key: facts[key] for key in ("python", "torch", "triton", "cuda")},
        "date": now.isoformat(timespec="seconds"),
        "kernels": entries,
    }


def passed_in(entries: dict[str, Any]) -> Callable[[str], bool]:
    """Whether a kernel is among these entries, and passed."""
    return {kernel for kernel, entry in entries.items() if ledger.passed(entry)}.__contains__


def figures_of(kernel: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """What the ledger keeps of a row for a kernel: of auto's choice, else of who else ran it."""
    for name in report.ours_of(row):
        if kernel not in report.kernels_of_row(row, name):
            continue
        measured = row["contestants"][name]
        figures = {
            "seconds": measured["median"],
            "device_seconds": measured.get("device_seconds"),
        }
        if name != report.OURS:
            return {**figures, "times_of_ours": measured["ratio"]["median"]}
        keys = ("best_peer", "best_ratio", "fraction_of_copy")
        return {**figures, **{key: row.get(key) for key in keys}}
    return None


def write_results(results: Path, made: dict[str, Any], measured: Path) -> None:
    """Ledger, and the figures of kernels that passed; old figures do not outlive their ledger."""
    (results / "ledger.json").write_text(json.dumps(made, indent=1) + "\n")
    for name in ("benchmarks.json", "table.md", "chart.png"):
        (results / name).unlink(missing_ok=True)
    if not measured.is_file():
        return
    data = json.loads(measured.read_text())
    passed = passed_in(made["kernels"])
    kept = []
    for benchmark in data["benchmarks"]:
        row = benchmark["extra_info"]
        if "contestants" in row and (shown := report.restricted(row, passed)):
            kept.append({**benchmark, "extra_info": shown})
    data["benchmarks"] = kept
    if data["benchmarks"]:
        (results / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
        report.record(results / "benchmarks.json", results.parent)


if __name__ == "__main__":
    raise SystemExit(main())
