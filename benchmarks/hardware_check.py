"""Builds, tests, sanitizes and measures on this machine's NVIDIA GPU, and writes the ledger.

    python benchmarks/hardware_check.py [--out DIR] [--site DIR]
    python benchmarks/hardware_check.py --build DIR

Within nine minutes, without network, with the torch, Triton and nvcc that are there; CUDA kernels
are built for this GPU alone. Tests and sanitizers run side by side, the benchmarks after them and
by themselves. Results go to benchmarks/results/<device> (or DIR/<device>): benchmarks.json,
table.md, chart.png, ledger.json, one log per step, and results.tar.gz, which holds all of them.
The ledger is there before the benchmarks begin. A step that fails does not stop the later ones; it
shows in the exit status, and no figure is recorded of a kernel whose tests or sanitizers failed.

--build installs into a folder what --site then takes in place of an installation, on a machine of
the same kind with the same Python: it is refused if the sources are others.

Without a GPU it runs the Triton kernels through the interpreter and compiles them ahead of time,
runs the CUDA kernels through the emulator of tests/emulation where g++ is there, and reports what
nvcc makes of them where nvcc is. The ledger stays as it is, since nothing was verified on hardware.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

import ledger
import machine
import report
from ledger import OPERATIONS
from steps import ABSENT, FAILED, LOST_TRACK, NO_END, PASSED, Command, Outcome, Steps

# The budgets of the steps add up to more than that: each is for a step that hangs, the deadline is
# for all together. Estimated for 16 cores: install 45 s (20 s of them nvcc, for one architecture;
# three take 60 s on 2 cores), verifying and peers 60 s, tests and sanitizers 150 s. The benchmarks
# have what is left, and begin with what is worth most.
SECONDS = 500
SECONDS_WITHOUT_GPU = 45 * 60  # interpreter and emulator are slow, and nobody pays for the machine
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_SOMETHING = 9  # the exit status that a sanitizer is told to end with
GPU_BACKENDS = ("triton", "cuda")
CUDA_TOOLS = "/usr/local/cuda/bin"  # not on every PATH
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "results", "*.egg-info", "*.so", "__pycache__"
)
# What an installation is made of, and its stamp.
INSTALLED = ("csrc", "logo_kernels", "CMakeLists.txt", "setup.py", "pyproject.toml")
STAMP = "logo_kernels.sources"

# Which tests are a backend's: those whose first parameter names it, as the shared fixture of
# tests/conftest.py has it, and the folders that are about it alone. "cuda" by itself would also be
# the emulated tests of the same kernels, "emulated-80", and those of the choice among backends,
# which run no kernel. What is compiled ahead of time is for GPUs that are not there.
SELECTED = {"triton": "([triton or triton_kernels) and not test_aot", "cuda": "[cuda"}
NO_KERNEL_RUNS = "test_backends"
# Without those of nvcc's figures, which are of the checkout, and have a step of their own.
EMULATED = "([emulated or emulation or cuda_kernels) and not test_static"
OF_THE_EMULATOR = ("cuda_kernels", "emulation")

# Of a backend's operation: {"passed": n, "failed": n}, and tool -> verdict; "plain" is without one.
Tests = dict[str, int]
Verdicts = dict[str, str]
Of = tuple[str, str]  # backend, operation


class Workplace:
    """A copy of the sources and the package installed from it, away from the checkout."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self.folder, self.steps = folder, steps
        self.source, self.site = folder / "source", folder / "site"
        shutil.copytree(ledger.ROOT, self.source, ignore=NOT_SOURCES)
        (self.source / "benchmarks/results").mkdir()
        # cmake and ninja that came by pip lie beside the Python, whether that is on the PATH or not
        beside = str(Path(sys.executable).parent)
        path = os.pathsep.join([beside, os.environ.get("PATH", os.defpath), CUDA_TOOLS])
        self.environment = {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}
        self.environment.pop("TRITON_INTERPRET", None)

    def install(self, seconds: float, architecture: str | None = None) -> Outcome:
        """By pip, against the torch that is there; the bare sources serve where that fails.

        The CUDA kernels are built for one architecture, where one is given: three take three times
        as long, and the GPU needs one.
        """
        command = [
            sys.executable, "-m", "pip", "install", "--no-index", "--no-build-isolation",
            "--no-deps", "--upgrade", "--target", self.site, self.source,
        ]  # fmt: skip
        environment = dict(self.environment)
        if architecture is not None:
            environment["CUDAARCHS"] = architecture
        (outcome,) = self.steps.run(Command("install", command, seconds, self.folder, environment))
        self.use(self.site if outcome.verdict == PASSED else self.source)
        return outcome

    def use(self, site: Path) -> None:
        self.environment["PYTHONPATH"] = str(site)

    def tool(self, name: str) -> str | None:
        return shutil.which(name, path=self.environment["PATH"])

    def python(self, name: str, seconds: float, *arguments: str | Path) -> Command:
        """This Python on the copy, outside the checkout."""
        command = [sys.executable, *arguments]
        return Command(name, command, seconds, self.folder, self.environment)

    def verify(self, name: str, seconds: float, *what: str) -> Command:
        return self.python(name, seconds, "-m", "logo_kernels", "--verify", *what)

    @staticmethod
    def parallel(share: int = 2) -> list[str]:
        """Most of a GPU test is compilation, which a share of the cores divides among itself."""
        if importlib.util.find_spec("xdist") is None:
            return []
        return ["-n", str(max(1, min(8, (os.cpu_count() or 1) // share)))]

    def tests(
        self,
        name: str,
        seconds: float,
        keyword: str,
        junit: Path,
        left_out: tuple[str, ...] = OF_THE_EMULATOR,
        share: int = 2,
    ) -> Command:
        """The package's tests that the keyword selects; not those of trainer and benchmarks."""
        tests = self.source / "tests"
        ignored = [f"--ignore={tests / folder}" for folder in ("trainer", "benchmarks", *left_out)]
        return self.python(
            name, seconds, "-m", "pytest", tests, "-c", self.source / "pyproject.toml",
            "--rootdir", self.source, "-p", "no:cacheprovider", "-q",
            "-m", "not slow", "-k", keyword, "--continue-on-collection-errors", *ignored,
            f"--junitxml={junit}", *self.parallel(share),
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where results go")
    parser.add_argument("--site", type=Path, help="a folder of --build, in place of installing")
    parser.add_argument("--build", type=Path, metavar="DIR", help="install into DIR, and no more")
    options = parser.parse_args(arguments)
    if options.site is not None and (reason := unusable(options.site, ledger.ROOT)) is not None:
        parser.error(f"--site {options.site}: {reason}")
    with tempfile.TemporaryDirectory(prefix="hardware-check-") as folder:
        if options.build is not None:
            return build(Path(folder), options.build.resolve())
        site = None if options.site is None else options.site.resolve()
        if torch.cuda.is_available():
            return on_gpu(Path(folder), options.out.resolve(), site)
        return without_gpu(Path(folder), site)


def build(folder: Path, site: Path) -> int:
    """An installation with a stamp: which sources it is of."""
    steps = Steps(folder / "logs", SECONDS_WITHOUT_GPU)
    work = Workplace(folder, steps)
    work.site = site
    if work.install(SECONDS_WITHOUT_GPU).verdict != PASSED:
        return 1
    (site / STAMP).write_text(sources_hash(work.source) + "\n")
    return 0


def unusable(site: Path, root: Path) -> str | None:
    """Why a folder does not stand for an installation of the tree `root`, or None."""
    stamp = site / STAMP
    if not stamp.is_file():
        return f"it has no {STAMP}; make it by --build"
    if stamp.read_text().strip() != sources_hash(root):
        return "it was built from other sources; make it again by --build"
    extension = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not (site / "logo_kernels" / extension).is_file():
        return f"it has no logo_kernels/{extension}; make it by --build with this Python"
    return None


def sources_hash(root: Path) -> str:
    """sha256 over names and contents of all that an installation is made of."""
    files = [
        path
        for name in INSTALLED
        for path in ([root / name] if (root / name).is_file() else sorted((root / name).rglob("*")))
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so"
    ]
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def without_gpu(folder: Path, site: Path | None = None) -> int:
    steps = Steps(folder / "logs", SECONDS_WITHOUT_GPU)
    work = Workplace(folder, steps)
    work.install(300) if site is None else work.use(site)
    steps.run(work.verify("verify cpu", 300, "cpu"))
    work.environment["TRITON_INTERPRET"] = "1"
    steps.run(work.verify("verify triton", 300, "triton"))
    steps.run(work.tests("interpreter", 720, SELECTED["triton"], folder / "tests.xml"))
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


def on_gpu(folder: Path, out: Path, site: Path | None = None) -> int:
    facts = machine.describe("cuda")
    results = out / machine.folder_name(facts["device"])
    steps = Steps(results / "logs", SECONDS)
    work = Workplace(folder, steps)
    if site is None:
        work.install(150, architecture_of(torch.cuda.get_device_capability()))
    else:
        work.use(site)
    verdicts = run_and_compile(work)
    archive(results)
    counts = sanitize_and_test(work, verdicts)
    # The copy is what was tested, whatever has become of the checkout meanwhile. Without figures
    # first: whatever ends the benchmarks, this is there.
    write_results(results, ledger_of(facts, counts, verdicts, [], work.source), [])
    archive(results)
    measured = measure(work, counts, verdicts)
    rows = [row for path in measured for row in rows_of(path)]
    write_results(results, ledger_of(facts, counts, verdicts, rows, work.source), measured)
    archive(results)
    print(ledger.table(ledger.status()) if out == report.RESULTS else f"results: {results}")
    return 0 if steps.all_passed() else 1


def pairs(work: Workplace) -> list[Of]:
    """Each backend with each operation of which it has a kernel."""
    found = {
        (ledger.backend_of(kernel), ledger.operation_of(kernel))
        for kernel in ledger.kernels(work.source)
    }
    return sorted(found)


def run_and_compile(work: Workplace) -> dict[Of, Verdicts]:
    """Every kernel once without a tool, while the peers are compiled: what sanitizers run next
    is then compiled too.
    """
    of = pairs(work)
    commands = [work.verify(f"verify {' '.join(each)}", 120, *each) for each in of]
    peers = work.python("compile the peers", 120, work.source / "benchmarks/warm_cache.py")
    outcomes = work.steps.run(*commands, peers)
    return {each: {"plain": outcome.verdict} for each, outcome in zip(of, outcomes, strict=False)}


def sanitize_and_test(work: Workplace, verdicts: dict[Of, Verdicts]) -> dict[Of, Tests]:
    """Adds the tools' verdicts. Side by side: most of it is torch's start and compilation."""
    sanitizer = work.tool("compute-sanitizer")
    commands: dict[tuple[Of, str], Command] = {}
    for of, tool in product(verdicts, SANITIZERS):
        if sanitizer is None:
            verdicts[of][tool] = work.steps.absent(f"{tool} {' '.join(of)}").verdict
        else:
            commands[of, tool] = sanitized(work, sanitizer, of, tool)
    backends = sorted({backend for backend, _ in verdicts})
    tests = [gpu_tests(work, backend) for backend in backends]
    outcomes = work.steps.run(
        *tests, *commands.values(), at_once=len(tests) + max(2, (os.cpu_count() or 1) // 2),
        seconds=240,
    )  # fmt: skip
    found = dict(zip(commands, outcomes[len(tests) :], strict=True))
    again = [key for key, outcome in found.items() if outcome.verdict == NO_END]
    seconds = 45  # a tool that hangs once more is not worth the benchmarks' time
    found.update(
        zip(again, work.steps.run(*map(commands.get, again), seconds=seconds), strict=True)
    )
    for (of, tool), outcome in found.items():
        verdicts[of][tool] = outcome.verdict
    counts: dict[Of, Tests] = {}
    for backend, outcome in zip(backends, outcomes, strict=False):
        for operation, tests_of in count_tests(junit_of(work, backend), backend, outcome).items():
            counts[backend, operation] = tests_of
    return counts


def junit_of(work: Workplace, backend: str) -> Path:
    return work.folder / f"tests-{backend}.xml"


def gpu_tests(work: Workplace, backend: str) -> Command:
    """Those that run a backend's kernels on hardware; most of their time is compilation."""
    keyword = f"({SELECTED[backend]}) and not {NO_KERNEL_RUNS}"
    share = 2 if backend == "triton" else 8
    return work.tests(f"tests {backend}", 220, keyword, junit_of(work, backend), share=share)


def sanitized(work: Workplace, sanitizer: str, of: Of, tool: str) -> Command:
    """An operation's cases under a tool, each tensor in an allocation of its own, so that a step
    beyond it is seen.
    """
    plain = work.verify(f"{tool} {' '.join(of)}", 180, *of)
    return replace(
        plain,
        words=[sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_SOMETHING), *plain.words],
        environment={**plain.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        judge=judged,
    )


def judged(code: int, log: Path) -> str:
    """What a sanitizer says of a program.

    It may lose the connection, and it may lose track of a launch, which it reports as an error of
    its own among those that it counts: neither is anything against a kernel.
    """
    said = log.read_text(errors="replace")
    counted = [int(n) for n in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", said)]
    if not counted:
        return NO_END
    if code == 0:
        return PASSED
    lost = said.count("Detected a failure to track a kernel launch")
    return LOST_TRACK if code == FOUND_SOMETHING and 0 < lost >= sum(counted) else FAILED


def measure(work: Workplace, counts: dict[Of, Tests], verdicts: dict[Of, Verdicts]) -> list[Path]:
    """Runs the benchmarks; one file of figures for each set of backends that are left out.

    A kernel that failed must not fall to auto's choice if another's passed.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for operation in OPERATIONS:
        groups.setdefault(not_worth_measuring(operation, counts, verdicts), []).append(operation)
    measured = []
    for without, operations in groups.items():
        measured.append(work.folder / f"benchmarks-{len(measured)}.json")
        # What is named after no operation, such as overhead, is of the cosine loss.
        others = [name for name in OPERATIONS if name not in operations]
        chosen = " or ".join(operations)
        if "cosine" in operations:
            chosen = " and ".join(f"not {name}" for name in others)
        work.steps.run(
            work.python(
                "benchmarks", 400, "-m", "pytest", work.source / "benchmarks", "--benchmark-only",
                "--device=cuda", *(f"--without={backend}" for backend in without), "-k", chosen,
                "-p", "no:cacheprovider", "-q", f"--benchmark-json={measured[-1]}",
            )
        )  # fmt: skip
    return measured


def architecture_of(capability: tuple[int, int]) -> str:
    """What CMakeLists.txt builds that serves this GPU, in CMake's words."""
    if capability == (9, 0):
        return "90a-real"
    return "100" if capability > (9, 0) else "80-real"  # with PTX, for what is newer than sm_100


def not_worth_measuring(
    operation: str, counts: dict[Of, Tests], verdicts: dict[Of, Verdicts]
) -> tuple[str, ...]:
    """Backends that failed in an operation, if another passed.

    Where none passed, all are measured: nothing is recorded, but the log has the figures.
    """
    backends = [backend for backend, measured in verdicts if measured == operation]
    passed = [
        backend
        for backend in backends
        if ledger.passed(verdict_on((backend, operation), counts, verdicts))
    ]
    return tuple(backend for backend in backends if passed and backend not in passed)


def verdict_on(
    of: Of, counts: dict[Of, Tests], verdicts: dict[Of, Verdicts]
) -> dict[str, Mapping[str, Any]]:
    """What the ledger holds of a kernel of this backend and operation, apart from its source."""
    nothing = {"passed": 0, "failed": 0}
    return {"tests": counts.get(of, nothing), "sanitizer": verdicts.get(of, {"plain": ABSENT})}


def count_tests(junit: Path, backend: str, run: Outcome) -> dict[str, Tests]:
    """Passed and failed tests of a backend by operation.

    A test that names no operation counts for all. So does the run itself, as a failed one, where
    it did not come to its end: what it did not reach has not passed.
    """
    counts = {operation: {"passed": 0, "failed": 0} for operation in OPERATIONS}
    complete = run.code in (0, 1) and junit.is_file()  # 1: some tests failed
    if not complete:
        for count in counts.values():
            count["failed"] += 1
    if not junit.is_file():
        return counts
    for case in ElementTree.parse(junit).iter("testcase"):
        module, name = case.get("classname", ""), case.get("name", "")
        owner = backend_of_test(module, name)
        if owner not in (backend, None):
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            kind = "failed"
        elif case.find("skipped") is None and owner is not None:
            kind = "passed"
        else:
            continue
        for operation in operations_of_test(module, name):
            counts[operation][kind] += 1
    return counts


def operations_of_test(module: str, name: str) -> list[str]:
    """Whose kernels a test is about, by what its file, its name or its parameters say; else all."""
    said = f"{module} {name}"
    found = [
        operation
        for operation, beginnings in OPERATIONS.items()
        if re.search(rf"(?<![a-z])({'|'.join(beginnings)})", said)
    ]
    return found or list(OPERATIONS)


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
    counts: dict[Of, Tests],
    verdicts: dict[Of, Verdicts],
    rows: list[dict[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """The ledger of this run: every kernel of the tree `root`, and figures of those that passed."""
    now = datetime.datetime.now(datetime.timezone.utc)
    entries: dict[str, Any] = {}
    for kernel, files in ledger.kernels(root).items():
        of = ledger.backend_of(kernel), ledger.operation_of(kernel)
        entries[kernel] = {
            "sha256": ledger.source_hash(files),
            **verdict_on(of, counts, verdicts),
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


def write_results(results: Path, made: dict[str, Any], measured: list[Path]) -> None:
    """Ledger, and the figures of kernels that passed; old figures do not outlive their ledger."""
    (results / "ledger.json").write_text(json.dumps(made, indent=1) + "\n")
    for name in ("benchmarks.json", "table.md", "chart.png"):
        (results / name).unlink(missing_ok=True)
    passed = passed_in(made["kernels"])
    kept: list[dict[str, Any]] = []
    written = [json.loads(path.read_text()) for path in measured if path.is_file()]
    for data in written:
        for benchmark in data["benchmarks"]:
            row = benchmark["extra_info"]
            if "contestants" in row and (shown := report.restricted(row, passed)):
                kept.append({**benchmark, "extra_info": shown})
    if kept:
        data = {**written[0], "benchmarks": kept}
        (results / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
        report.record(results / "benchmarks.json", results.parent)


def archive(results: Path) -> None:
    """All results so far in one file, for where few come back; there is one at any time."""
    whole, begun = results / "results.tar.gz", results / "results.tar.gz.part"
    with tarfile.open(begun, "w:gz") as file:
        for path in sorted(results.rglob("*")):
            if path.is_file() and path not in (whole, begun):
                file.add(path, path.relative_to(results.parent))
    begun.replace(whole)


if __name__ == "__main__":
    raise SystemExit(main())
