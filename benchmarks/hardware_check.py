"""Builds, tests, sanitizes and measures on this machine's NVIDIA GPU, and writes the ledger.

    python benchmarks/hardware_check.py [--out DIR]

Under ten minutes, without network, with the torch and Triton that are there. Results go to
benchmarks/results/<device> (or DIR/<device>): benchmarks.json, table.md, chart.png, ledger.json and
one log per step. A step that fails does not stop the later ones; it shows in the exit status, and
no figure is recorded of a kernel whose tests or sanitizer runs failed.

Without a GPU it runs the Triton kernels through the interpreter and compiles them ahead of time;
the ledger stays as it is, since nothing was verified on hardware.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import ledger
import machine
import report
from steps import ABSENT, PASSED, Steps

SECONDS = 9.5 * 60
SECONDS_WITHOUT_GPU = 25 * 60  # the interpreter is slow, and nobody pays for the machine
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
GPU_BACKENDS = ("triton", "cuda")
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "results", "*.egg-info", "*.so", "__pycache__"
)

TestCounts = dict[str, dict[str, int]]  # backend -> {"passed": n, "failed": n}


class Workplace:
    """A copy of the sources and the package installed from it, away from the checkout."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.source, self.site = folder / "source", folder / "site"
        shutil.copytree(ledger.ROOT, self.source, ignore=NOT_SOURCES)
        (self.source / "benchmarks/results").mkdir()
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.environment.pop("TRITON_INTERPRET", None)

    def install(self) -> None:
        """By pip, against the torch that is there; the bare sources serve where that fails."""
        command = [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation",
            "--no-deps", "--target", self.site, self.source,
        ]  # fmt: skip
        outcome = self.steps.run("install", command, 120, self.folder, self.environment)
        package = self.site if outcome.verdict == PASSED else self.source
        self.environment["PYTHONPATH"] = str(package)

    def python(self, name: str, seconds: float, *arguments: str | Path) -> str:
        """Runs this Python on the copy, outside the checkout; the verdict."""
        command = [sys.executable, *arguments]
        return self.steps.run(name, command, seconds, self.folder, self.environment).verdict

    @staticmethod
    def parallel() -> list[str]:
        """Most of a GPU test is compilation, which many cores share if pytest-xdist is there."""
        cores = min(8, (os.cpu_count() or 1) // 2)
        return ["-n", str(cores)] if cores > 1 and importlib.util.find_spec("xdist") else []

    def tests(self, name: str, seconds: float, keyword: str, junit: Path) -> str:
        """The package's tests that name a GPU backend; not those of trainer and benchmarks."""
        tests = self.source / "tests"
        return self.python(
            name, seconds, "-m", "pytest", tests, "-c", self.source / "pyproject.toml",
            "--rootdir", self.source, "-p", "no:cacheprovider", "-q",
            "-m", "not slow", "-k", keyword, "--continue-on-collection-errors",
            "--ignore", tests / "trainer", "--ignore", tests / "benchmarks",
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
    work.install()
    work.environment["TRITON_INTERPRET"] = "1"
    work.python("small cases triton", 120, work.source / "benchmarks/small_cases.py", "triton")
    work.tests("interpreter", 720, "triton", folder / "tests.xml")
    work.environment.pop("TRITON_INTERPRET")
    work.python("ahead of time", 600, work.source / "tests/triton_kernels/aot.py")
    print(steps.outcomes[-1].log.read_text())
    print("No NVIDIA GPU here: nothing was verified on hardware, and the ledger stays as it is.")
    return 0 if steps.all_passed() else 1


def on_gpu(folder: Path, out: Path) -> int:
    facts = machine.describe("cuda")
    results = out / machine.folder_name(facts["device"])
    steps = Steps(results / "logs", SECONDS)
    work = Workplace(folder, steps)
    work.install()
    junit = folder / "tests.xml"
    work.tests("tests", 170, "triton or cuda", junit)
    counts = count_tests(junit)
    verdicts = sanitize(work)
    work.python("compile the peers", 90, work.source / "benchmarks/warm_cache.py")
    measured = folder / "benchmarks.json"
    work.python(
        "benchmarks", 300, "-m", "pytest", work.source / "benchmarks", "--benchmark-only",
        "--device=cuda", "-p", "no:cacheprovider", "-q", f"--benchmark-json={measured}",
    )  # fmt: skip
    # The copy is what was tested, whatever has become of the checkout meanwhile.
    made = ledger_of(facts, counts, verdicts, rows_of(measured), work.source)
    write_results(results, made, measured, work.source)
    print(ledger.table(ledger.status()) if out == report.RESULTS else f"results: {results}")
    return 0 if steps.all_passed() else 1


def sanitize(work: Workplace) -> dict[str, dict[str, str]]:
    """Backend -> tool -> verdict, on small cases; "plain" is the same without a tool."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    sanitizer = shutil.which("compute-sanitizer", path=path)
    script = work.source / "benchmarks/small_cases.py"
    verdicts: dict[str, dict[str, str]] = {}
    for backend in sorted({ledger.backend_of(kernel) for kernel in ledger.kernels(work.source)}):
        verdicts[backend] = {"plain": work.python(f"small cases {backend}", 60, script, backend)}
        for tool in SANITIZERS:
            name = f"{tool} {backend}"
            if sanitizer is None:
                verdicts[backend][tool] = work.steps.absent(name).verdict
                continue
            command = [
                sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, script, backend
            ]  # fmt: skip
            # Each tensor in an allocation of its own, so that a step beyond it is seen.
            environment = {**work.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            outcome = work.steps.run(name, command, 35, work.folder, environment)
            verdicts[backend][tool] = outcome.verdict
    return verdicts


def count_tests(junit: Path) -> TestCounts:
    """Passed and failed tests per backend; a failure that names no backend counts for all."""
    counts = {backend: {"passed": 0, "failed": 0} for backend in GPU_BACKENDS}
    if not junit.is_file():
        return counts
    for case in ElementTree.parse(junit).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        named = [backend for backend in GPU_BACKENDS if backend in name]
        if case.find("failure") is not None or case.find("error") is not None:
            for backend in named or GPU_BACKENDS:
                counts[backend]["failed"] += 1
        elif case.find("skipped") is None:
            for backend in named:
                counts[backend]["passed"] += 1
    return counts


def rows_of(measured: Path) -> list[dict[str, Any]]:
    return report.load(measured)[1] if measured.is_file() else []


def ledger_of(
    facts: dict[str, Any],
    counts: TestCounts,
    verdicts: dict[str, dict[str, str]],
    rows: list[dict[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """The ledger of this run: every kernel of the tree `root`, and figures of those that passed."""
    now = datetime.datetime.now(datetime.timezone.utc)
    entries: dict[str, Any] = {}
    for kernel, files in ledger.kernels(root).items():
        backend = ledger.backend_of(kernel)
        entry: dict[str, Any] = {
            "sha256": ledger.source_hash(files),
            "tests": counts[backend],
            # A tool that ran out of time has shown nothing: it counts as failed.
            "sanitizer": {
                tool: verdict if verdict in (PASSED, ABSENT) else "failed"
                for tool, verdict in verdicts[backend].items()
            },
        }
        if ledger.passed(entry):
            entry["benchmarks"] = {
                row["case"]: {
                    "seconds": row["contestants"]["ours"]["median"],
                    "device_seconds": row["contestants"]["ours"].get("device_seconds"),
                    "best_peer": row["best_peer"],
                    "best_ratio": row["best_ratio"],
                    "fraction_of_copy": row.get("fraction_of_copy"),
                }
                for row in rows
                if kernel in report.kernels_of_row(row, root)
            }
        entries[kernel] = entry
    return {
        "device": facts["device"],
        "driver": facts.get("driver_version", "unknown"),
        "clocks": {key: value for key, value in facts.items() if key.startswith("clocks.")}
        or {"unknown": "nvidia-smi did not answer"},
        "versions": {key: facts[key] for key in ("python", "torch", "triton", "cuda")},
        "date": now.isoformat(timespec="seconds"),
        "kernels": entries,
    }


def write_results(results: Path, made: dict[str, Any], measured: Path, root: Path) -> None:
    """Ledger, and the figures of kernels that passed; old figures do not outlive their ledger."""
    (results / "ledger.json").write_text(json.dumps(made, indent=1) + "\n")
    for name in ("benchmarks.json", "table.md", "chart.png"):
        (results / name).unlink(missing_ok=True)
    if not measured.is_file():
        return
    data = json.loads(measured.read_text())
    passed = {kernel for kernel, entry in made["kernels"].items() if ledger.passed(entry)}
    data["benchmarks"] = [
        benchmark
        for benchmark in data["benchmarks"]
        if (behind := report.kernels_of_row(benchmark["extra_info"], root))
        and passed.issuperset(behind)
    ]
    if data["benchmarks"]:
        (results / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
        report.record(results / "benchmarks.json", results.parent)


if __name__ == "__main__":
    raise SystemExit(main())
