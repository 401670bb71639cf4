"""Builds, tests, sanitizes and measures on this machine's NVIDIA GPU, and writes the ledger.

    python benchmarks/hardware_check.py [--out DIR] [--site DIR] [--seconds N]
    python benchmarks/hardware_check.py --build DIR

Within nine minutes or N seconds, without network, with the torch, Triton and nvcc that are there;
CUDA kernels are built for this GPU alone. Tests and sanitizers run side by side, the benchmarks
after them and by themselves. Results go to benchmarks/results/<device> (or DIR/<device>):
benchmarks.json, table.md, chart.png, ledger.json, one log per step, and results.tar.gz, which holds
all of them. The ledger is there before the benchmarks begin. A step that fails does not stop the
later ones; it shows in the exit status, and no figure is recorded of a kernel whose tests or
sanitizers failed.

--build installs into a folder what --site then takes in place of an installation, on a machine of
the same kind with the same Python: it is refused if the sources are others.

Without a GPU it runs the Triton kernels through the interpreter and compiles them ahead of time,
runs the CUDA kernels through the emulator of tests/emulation where g++ is there, and reports what
nvcc makes of them where nvcc is. The ledger stays as it is, since nothing was verified on hardware.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from harness import machine, report

from . import ledger
from .counts import EMULATED, NO_KERNEL_RUNS, SELECTED, Tests, count_tests
from .ledger import OPERATIONS
from .results import Of, Verdicts, archive, ledger_of, rows_of, verdict_on, write_results
from .steps import ANOTHERS, FAILED, LOST_TRACK, NO_END, PASSED, Command, Steps
from .workplace import STAMP, Workplace, sources_hash, unusable

# The budgets of the steps add up to more than that: each is for a step that hangs, the deadline is
# for all together. On 16 cores: install 45 s (20 s of them nvcc, for one architecture; three take
# 60 s on 2 cores), tests, verification, sanitizers and peers side by side some 200 s, of which
# Triton's compiler takes most. The benchmarks have what is left, and begin with what is worth most.
SECONDS = 500
SECONDS_WITHOUT_GPU = 45 * 60  # interpreter and emulator are slow, and nobody pays for the machine
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_SOMETHING = 9  # the exit status that a sanitizer is told to end with


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="where results go")
    parser.add_argument("--site", type=Path, help="a folder of --build, in place of installing")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="to the end of the benchmarks")
    parser.add_argument("--build", type=Path, metavar="DIR", help="install into DIR, and no more")
    options = parser.parse_args(arguments)
    if options.site is not None and (reason := unusable(options.site, ledger.ROOT)) is not None:
        parser.error(f"--site {options.site}: {reason}")
    with tempfile.TemporaryDirectory(prefix="hardware-check-") as folder:
        if options.build is not None:
            return build(Path(folder), options.build.resolve())
        site = None if options.site is None else options.site.resolve()
        if torch.cuda.is_available():
            return on_gpu(Path(folder), options.out.resolve(), site, options.seconds)
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
    # The CUDA sources through the emulator, which g++ builds first.
    emulated = emulated_tests(work, folder / "emulated.xml")
    steps.run(emulated) if work.tool("g++") else steps.absent(emulated.name)
    script = work.source / "benchmarks/static_report.py"
    static = work.python("static report", 300, script)
    steps.run(static) if script.is_file() and work.tool("nvcc") else steps.absent(static.name)
    for outcome in steps.outcomes:
        if outcome.name in ("ahead of time", "static report") and outcome.log is not None:
            print(outcome.log.read_text(errors="replace"))
    print("No NVIDIA GPU here: nothing was verified on hardware, and the ledger stays as it is.")
    return 0 if steps.all_passed() else 1


def emulated_tests(work: Workplace, junit: Path) -> Command:
    return work.tests("emulated", 900, EMULATED, junit, left_out=("triton_kernels",))


def on_gpu(folder: Path, out: Path, site: Path | None = None, seconds: float = SECONDS) -> int:
    facts = machine.describe("cuda")
    results = out / machine.folder_name(facts["device"])
    steps = Steps(results / "logs", seconds)
    work = Workplace(folder, steps)
    if site is None:
        work.install(150, architecture_of(torch.cuda.get_device_capability()))
    else:
        work.use(site)
    verdicts, counts = check_kernels(work)
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


def check_kernels(work: Workplace) -> tuple[dict[Of, Verdicts], dict[Of, Tests]]:
    """Tests; every kernel once without a tool, and under each; meanwhile the peers are compiled.

    Side by side, since most of it is torch's start and compilation: the longest first, and the
    sanitizers last, whose programs are compiled by then.
    """
    of = pairs(work)
    backends = sorted({backend for backend, _ in of})
    tests = [gpu_tests(work, backend) for backend in backends]
    plain = [work.verify(name_of(each, "verify"), 120, *each) for each in of]
    peers = work.python("compile the peers", 180, "-m", "hardware.warm_cache")
    modules = os.pathsep.join([str(work.source / "benchmarks"), peers.environment["PYTHONPATH"]])
    peers = replace(peers, environment={**peers.environment, "PYTHONPATH": modules})
    sanitizer = work.tool("compute-sanitizer")
    tools = [sanitized(work, sanitizer, *each) for each in product(of, SANITIZERS) if sanitizer]
    outcomes = work.steps.run(
        *tests, *plain, peers, *tools,
        at_once=len(tests) + max(2, (os.cpu_count() or 1) // 2), seconds=300,
    )  # fmt: skip
    if sanitizer is None:
        outcomes += [work.steps.absent(name_of(*each)) for each in product(of, SANITIZERS)]
    last = {outcome.name: outcome for outcome in outcomes}
    # 45 s: a tool that hangs once more is not worth the benchmarks' time.
    again = [tool for tool in tools if last[tool.name].verdict == NO_END]
    last |= {outcome.name: outcome for outcome in work.steps.run(*again, seconds=45)}
    counts: dict[Of, Tests] = {}
    for backend, command in zip(backends, tests, strict=True):
        found = count_tests(junit_of(work, backend), backend, last[command.name])
        counts |= {(backend, operation): tests_of for operation, tests_of in found.items()}
    verdicts = {
        each: {"plain": last[name_of(each, "verify")].verdict}
        | {tool: last[name_of(each, tool)].verdict for tool in SANITIZERS}
        for each in of
    }
    return verdicts, counts


def junit_of(work: Workplace, backend: str) -> Path:
    return work.folder / f"tests-{backend}.xml"


def gpu_tests(work: Workplace, backend: str) -> Command:
    """Those that run a backend's kernels on hardware; Triton's most of all wait for a compiler."""
    keyword = f"({SELECTED[backend]}) and not {NO_KERNEL_RUNS}"
    share = 0.75 if backend == "triton" else 0.25
    return work.tests(f"tests {backend}", 300, keyword, junit_of(work, backend), share=share)


def name_of(of: Of, tool: str) -> str:
    return f"{tool} {' '.join(of)}"


def sanitized(work: Workplace, sanitizer: str, of: Of, tool: str) -> Command:
    """An operation's cases under a tool, each tensor in an allocation of its own, so that a step
    beyond it is seen.
    """
    plain = work.verify(name_of(of, tool), 180, *of)
    return replace(
        plain,
        words=[sanitizer, "--tool", tool, "--error-exitcode", str(FOUND_SOMETHING), *plain.words],
        environment={**plain.environment, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        judge=judged,
    )


def judged(code: int, log: Path) -> str:
    """What a sanitizer says of a program.

    It may lose the connection, and it may lose track of a launch, which it reports as an error of
    its own among those that it counts: neither is anything against a kernel. A race in a kernel of
    cuBLAS, of which the affinity's products are, is nothing against ours.
    """
    said = log.read_text(errors="replace")
    counted = [int(n) for n in re.findall(r"SUMMARY: (\d+) (?:error|hazard)", said)]
    if not counted:
        return NO_END
    if code == 0:
        return PASSED
    lost = said.count("Detected a failure to track a kernel launch")
    races = re.findall(
        r"Race reported between \w+ access at (.*)\n=+ +and \w+ access at (.*)", said
    )
    others = sum(not is_ours(one) and not is_ours(other) for one, other in races)
    if code != FOUND_SOMETHING or lost + others < sum(counted):
        return FAILED
    return ANOTHERS if others else LOST_TRACK if lost else FAILED


def is_ours(place: str) -> bool:
    """Whether a sanitizer's line names a kernel of ours: by CUDA's namespace, or a Python file."""
    return "logo::" in place or re.search(r" in \w+\.py:\d", place) is not None


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
