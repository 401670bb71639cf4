"""The hardware check without hardware: budgets, verdicts, and what reaches the ledger."""

import json
import os
import re
import sys
import sysconfig
import tarfile
import time
from dataclasses import replace

import pytest

import hardware_check
import ledger
import report
from hardware_check import Workplace
from steps import ABSENT, FAILED, LOST_TRACK, NO_END, PASSED, TIMED_OUT, Command, Outcome, Steps

KERNEL = "logo_kernels/backends/triton/cosine.py"
CUDA_KERNEL = "csrc/cuda/cosine.cu"
CUDA_SCALE = "csrc/cuda/scale.cu"


def command(tmp_path, code, seconds=20.0, name="a step"):
    return Command(name, [sys.executable, "-c", code], seconds, tmp_path, os.environ)


def run(steps, tmp_path, code, seconds=20.0, name="a step"):
    (outcome,) = steps.run(command(tmp_path, code, seconds, name))
    return outcome


def test_steps_go_on_after_a_failure(tmp_path):
    steps = Steps(tmp_path / "logs", 60)
    assert run(steps, tmp_path, "print('first'); raise SystemExit(3)").verdict == FAILED
    assert run(steps, tmp_path, "print('second')", name="another").verdict == PASSED
    assert steps.absent("a tool").verdict == ABSENT
    assert not steps.all_passed()
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == [
        "01-a-step.log", "02-another.log"
    ]  # fmt: skip
    assert (tmp_path / "logs/02-another.log").read_text() == "second\n"
    assert run(steps, tmp_path, "print('better')").verdict == PASSED
    assert steps.all_passed()  # the last time that a step ran is what counts


def test_a_step_is_interrupted_and_may_write_what_it_has(tmp_path):
    code = (
        "import time\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('written', flush=True)"
    )
    start = time.monotonic()
    outcome = run(Steps(tmp_path / "logs", 60), tmp_path, code, seconds=1.5)
    assert outcome.verdict == TIMED_OUT
    assert time.monotonic() - start < 10
    assert "written" in outcome.log.read_text()


def test_steps_side_by_side(tmp_path):
    """Each waits for a file of the other: one after the other, neither would end."""
    code = (
        "import sys, time, pathlib\n"
        "pathlib.Path({mine!r}).touch()\n"
        "while not pathlib.Path({other!r}).exists():\n    time.sleep(0.01)\n"
        "print({mine!r})\nraise SystemExit({code})"
    )
    steps = Steps(tmp_path / "logs", 60)
    first, second, third = steps.run(
        command(tmp_path, code.format(mine="a", other="b", code=0)),
        command(tmp_path, code.format(mine="b", other="a", code=3)),
        command(tmp_path, "import time; time.sleep(60)", seconds=1.0),
    )
    assert (first.verdict, second.verdict, third.verdict) == (PASSED, FAILED, TIMED_OUT)
    assert [outcome.log.read_text() for outcome in (first, second)] == ["a\n", "b\n"]
    assert third.seconds < 15
    assert sorted(steps.outcomes) == sorted([first, second, third])


def test_no_step_starts_after_the_deadline(tmp_path):
    steps = Steps(tmp_path / "logs", 0)
    assert run(steps, tmp_path, "print('never')").verdict == TIMED_OUT
    assert "never" not in steps.outcomes[0].log.read_text()


def junit(tmp_path, *cases):
    path = tmp_path / "tests.xml"
    body = "".join(
        f'<testcase classname="{classname}" name="{name}">{inside}</testcase>'
        for classname, name, inside in cases
    )
    path.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    return path


ENDED = Outcome("tests", FAILED, 1.0, None, 1)


def test_tests_are_counted_by_operation(tmp_path):
    path = junit(
        tmp_path,
        ("tests.triton_kernels.test_scale", "test_one", ""),
        ("tests.test_cosine", "test_golden[triton-float32]", ""),
        ("tests.test_cosine", "test_golden[triton-float16]", "<skipped/>"),
        ("tests.test_cosine", "test_golden[cuda-float32]", "<failure/>"),
        ("tests.test_gpu", "test_replayed_graph[cuda-info_nce]", "<failure/>"),
        ("tests.test_similarity", "test_golden[cuda-cuda]", ""),
        ("tests.test_pair_stage", "test_nan_is_seen[cuda]", "<error/>"),
        ("tests.test_compile", "test_autocast[cuda]", ""),
        ("tests.test_cosine", "test_golden[emulated-80]", ""),
        ("tests.test_cosine", "test_golden[emulated-90-cuda]", "<failure/>"),
        ("tests.cuda_kernels.test_walk", "test_it[sm_80]", "<failure/>"),
        ("tests.emulation.test_emulator", "test_it", "<error/>"),
        ("tests.test_losses", "test_cuda_is_named", ""),
        ("tests.test_backends", "test_auto[cuda-reasons0-cuda]", ""),
    )
    assert hardware_check.count_tests(path, "triton", ENDED) == {
        "cosine": {"passed": 2, "failed": 0},
        "similarity": {"passed": 0, "failed": 0},
        "info_nce": {"passed": 0, "failed": 0},
        "affinity": {"passed": 0, "failed": 0},
    }
    assert hardware_check.count_tests(path, "cuda", ENDED) == {
        "cosine": {"passed": 1, "failed": 1},
        "similarity": {"passed": 2, "failed": 0},
        "info_nce": {"passed": 1, "failed": 1},
        "affinity": {"passed": 1, "failed": 1},
    }


@pytest.mark.parametrize(
    ("module", "name", "operations"),
    [
        ("tests.test_cosine_anything", "test_any_problem[cuda]", ["cosine"]),
        ("tests.triton_kernels.test_scale", "test_product[x]", ["cosine"]),
        ("tests.triton_kernels.test_pair_mlp", "test_nan", ["affinity"]),
        ("tests.test_affinity", "test_in_the_loss[cuda-info_nce]", ["info_nce", "affinity"]),
        ("tests.test_compile", "test_opcheck_similarity[cuda]", ["similarity"]),
        ("tests.test_unit", "test_rows[cuda]", ["affinity"]),
        ("tests.test_compile", "test_opportunity[cuda]", list(ledger.OPERATIONS)),
    ],
)
def test_whose_operation_it_is(module, name, operations):
    assert hardware_check.operations_of_test(module, name) == operations


@pytest.mark.parametrize(
    ("verdict", "code", "failed"),
    [(PASSED, 0, 0), (FAILED, 1, 0), (TIMED_OUT, None, 1), (FAILED, 2, 1), (FAILED, 3, 1)],
)
def test_a_run_that_did_not_end_has_not_passed(tmp_path, verdict, code, failed):
    """Whatever tests of it have: others were to come."""
    path = junit(tmp_path, ("tests.test_cosine", "test_it[cuda]", ""))
    counts = hardware_check.count_tests(path, "cuda", Outcome("tests", verdict, 1.0, None, code))
    assert counts["cosine"] == {"passed": 1, "failed": failed}
    assert counts["similarity"] == {"passed": 0, "failed": failed}


@pytest.mark.parametrize(
    ("module", "name", "owner"),
    [
        ("tests.test_cosine", "test_expanded[cuda]", "cuda"),
        ("tests.test_cosine", "test_strides[cuda-view-major-dtype0]", "cuda"),
        ("tests.test_cosine", "test_strides[triton-strided over D-dtype0]", "triton"),
        ("tests.test_cosine", "test_strides[emulated-90-view-major-dtype0]", "emulated"),
        ("tests.test_cosine", "test_cases[cpu-cuda]", None),
        ("tests.test_cosine", "test_cuda", None),
        ("tests.triton_kernels.test_aot", "test_compiles[cuda-80]", "triton"),
        ("tests.cuda_kernels.test_scale", "test_products[sm_80-True]", "emulated"),
        ("tests.test_backends", "test_auto[cuda-reasons0-cuda]", None),
        ("", "tests.test_properties", None),
    ],
)
def test_whose_test_it_is(module, name, owner):
    assert hardware_check.backend_of_test(module, name) == owner


def collected(monkeypatch, tmp_path, tests):
    """(module, name) of the project's tests that the command `tests(workplace)` would run here."""
    monkeypatch.setattr(Workplace, "__init__", lambda self: None)
    monkeypatch.setattr(Workplace, "parallel", lambda self, share: [])
    work = Workplace()
    work.source, work.folder, work.environment = ledger.ROOT, tmp_path, dict(os.environ)
    work.steps = Steps(tmp_path / "logs", 300)

    made = tests(work)
    work.steps.run(replace(made, words=[*made.words, "--collect-only"]))
    lines = work.steps.outcomes[-1].log.read_text().splitlines()
    found = [line.split("::", 1) for line in lines if "::" in line]
    return [(path.removesuffix(".py").replace("/", "."), name) for path, name in found]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_gpu_runs_tests_of_its_backends_alone(monkeypatch, tmp_path, backend):
    """Of this project's own tests: what is selected is what is counted."""
    found = collected(monkeypatch, tmp_path, lambda work: hardware_check.gpu_tests(work, backend))
    assert {hardware_check.backend_of_test(*test) for test in found} == {backend}
    modules = {module for module, _ in found}
    assert modules >= {"tests.test_cosine", "tests.test_similarity"}
    assert any("triton_kernels" in module for module in modules) == (backend == "triton")
    assert not any("test_aot" in module for module in modules)  # for GPUs that are not here


def test_the_emulator_runs_tests_of_its_own_alone(monkeypatch, tmp_path):
    found = collected(
        monkeypatch, tmp_path, lambda work: hardware_check.emulated_tests(work, tmp_path / "x.xml")
    )
    assert {hardware_check.backend_of_test(*test) for test in found} == {"emulated"}
    assert {"tests.test_cosine", "tests.cuda_kernels.test_walk"} <= {module for module, _ in found}
    assert any(module.startswith("tests.emulation.") for module, _ in found)
    assert "tests.cuda_kernels.test_static" not in {module for module, _ in found}


def test_a_failure_that_names_nothing_counts_for_all(tmp_path):
    path = junit(tmp_path, ("", "tests.test_properties", "<error/>"))
    counts = hardware_check.count_tests(path, "cuda", ENDED)
    assert counts == {name: {"passed": 0, "failed": 1} for name in ledger.OPERATIONS}


def test_no_report_means_nothing_passed(tmp_path):
    counts = hardware_check.count_tests(tmp_path / "absent.xml", "cuda", ENDED)
    assert all(count == {"passed": 0, "failed": 1} for count in counts.values())


ROW = {
    "operation": "cosine", "case": "cosine-1024x2x8x2048-bfloat16", "device": "cuda",
    "backend": "triton", "contestants": {"ours": {"median": 5e-5}}, "best_peer": "sums",
    "best_ratio": 3.0, "fraction_of_copy": 0.9, "kernels": {"ours": [KERNEL]},
}  # fmt: skip
FACTS = {
    "device": "NVIDIA H200", "driver_version": "580", "clocks.sm": "1980 MHz",
    "python": "3.12", "torch": "2.11", "triton": "3.6", "cuda": "13.0",
}  # fmt: skip


def of(operation="cosine", **values):
    """(backend, operation) -> value."""
    return {(backend, operation): value for backend, value in values.items()}


GOOD = {"passed": 5, "failed": 0}


@pytest.mark.parametrize(
    ("failed", "plain", "racecheck", "recorded"),
    [
        (0, PASSED, PASSED, True), (0, PASSED, ABSENT, True), (1, PASSED, PASSED, False),
        (0, PASSED, TIMED_OUT, True), (0, PASSED, LOST_TRACK, True), (0, PASSED, FAILED, False),
        (0, TIMED_OUT, PASSED, False), (0, FAILED, PASSED, False),
    ],
)  # fmt: skip
def test_figures_are_recorded_only_of_what_passed(
    tree, monkeypatch, tmp_path, failed, plain, racecheck, recorded
):
    monkeypatch.setattr(report, "record", lambda *paths: None)
    made = hardware_check.ledger_of(
        FACTS,
        of(triton={"passed": 5, "failed": failed}, cuda={"passed": 0, "failed": 0}),
        of(triton={"plain": plain, "racecheck": racecheck}, cuda={"plain": FAILED}),
        [ROW],
        tree,
    )
    assert made["kernels"][KERNEL]["sanitizer"]["racecheck"] == racecheck
    assert ("benchmarks" in made["kernels"][KERNEL]) == recorded
    assert "benchmarks" not in made["kernels"]["csrc/cuda/cosine.cu"]

    measured = tmp_path / "benchmarks.json"
    measured.write_text(json.dumps({"machine_info": FACTS, "benchmarks": [{"extra_info": ROW}]}))
    results = tree / "benchmarks/results/nvidia-h200"
    results.mkdir(parents=True)
    hardware_check.write_results(results, made, [measured])
    assert (results / "benchmarks.json").is_file() == recorded
    assert ledger.inconsistencies(tree) == []
    assert ledger.is_verified(KERNEL, "NVIDIA H200", tree) == recorded


BOTH = ROW | {
    "backend": "cuda", "size": "(1024, 2, 8, 2048)", "dtype": "bfloat16", "view_major": False,
    "moved_bytes": 92_274_688, "bytes_per_second": 4e12, "excluded": {},
    "contestants": {
        "ours": {"median": 1e-4, "peak_bytes": 1},
        "ours, triton": {"median": 2e-4, "peak_bytes": 1, "ratio": {"median": 2.0}},
        "sums": {"median": 3e-4, "peak_bytes": 1, "ratio": {"median": 3.0}},
    },
    "kernels": {"ours": [CUDA_KERNEL, CUDA_SCALE], "ours, triton": [KERNEL, CUDA_SCALE]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("triton", "cuda", "shown"),
    [
        (PASSED, PASSED, ["ours", "ours, triton"]),
        (FAILED, PASSED, ["ours"]),
        (PASSED, FAILED, None),  # what they are measured against is not to be told
    ],
)
def test_each_contestant_is_recorded_only_with_its_kernels(
    tree, monkeypatch, tmp_path, triton, cuda, shown
):
    monkeypatch.setattr(report, "record", lambda *paths: None)
    made = hardware_check.ledger_of(
        FACTS,
        of(triton=GOOD, cuda=GOOD),
        of(triton={"memcheck": triton}, cuda={"memcheck": cuda}),
        [BOTH],
        tree,
    )
    kept = {name: entry.get("benchmarks") for name, entry in made["kernels"].items()}
    ours = {
        "seconds": 1e-4, "device_seconds": None,
        "best_peer": "sums", "best_ratio": 3.0, "fraction_of_copy": 0.9,
    }  # fmt: skip
    beside = {"seconds": 2e-4, "device_seconds": None, "times_of_ours": 2.0}
    assert kept == {
        KERNEL: None if triton == FAILED else {BOTH["case"]: beside} if cuda == PASSED else {},
        CUDA_KERNEL: {BOTH["case"]: ours} if cuda == PASSED else None,
        CUDA_SCALE: {BOTH["case"]: ours} if cuda == PASSED else None,
    }
    measured = tmp_path / "benchmarks.json"
    measured.write_text(json.dumps({"machine_info": FACTS, "benchmarks": [{"extra_info": BOTH}]}))
    results = tmp_path / "results"
    results.mkdir()
    hardware_check.write_results(results, made, [measured])
    if shown is None:
        assert not (results / "benchmarks.json").is_file()
        return
    (row,) = report.load(results / "benchmarks.json")[1]
    assert report.ours_of(row) == shown


def test_a_failure_is_that_of_its_operation(tree):
    """What goes wrong in one says nothing of another's kernels."""
    (tree / "csrc/cuda/similarity.cu").write_text("__global__ void kernel() {}\n")
    counts = of(cuda={"passed": 5, "failed": 1}) | of("similarity", cuda=GOOD)
    verdicts = of(cuda={"plain": PASSED}) | of("similarity", cuda={"plain": PASSED})
    entries = hardware_check.ledger_of(FACTS, counts, verdicts, [], tree)["kernels"]
    passed = {kernel for kernel, entry in entries.items() if ledger.passed(entry)}
    assert passed == {"csrc/cuda/similarity.cu"}
    assert not ledger.passed(entries[KERNEL])  # of which nothing is known


@pytest.mark.parametrize(
    ("triton", "cuda", "without"),
    [
        (PASSED, PASSED, ()),
        (PASSED, FAILED, ("cuda",)),
        (TIMED_OUT, PASSED, ("triton",)),
        (FAILED, FAILED, ()),
    ],
)
def test_what_failed_is_not_measured_if_another_passed(triton, cuda, without):
    counts = of(triton=GOOD, cuda=GOOD) | of("similarity", triton=GOOD, cuda=GOOD)
    verdicts = of(cuda={"plain": cuda}, triton={"plain": triton})
    verdicts |= of("similarity", cuda={"plain": PASSED}, triton={"plain": PASSED})
    assert hardware_check.not_worth_measuring("cosine", counts, verdicts) == without
    assert hardware_check.not_worth_measuring("similarity", counts, verdicts) == ()


def test_operations_are_measured_apart_where_backends_failed_in_some(monkeypatch, tmp_path):
    work, commands = made_workplace(monkeypatch, tmp_path)
    verdicts, counts = {}, {}
    for operation in ledger.OPERATIONS:
        bad = operation == "info_nce"
        verdicts |= of(
            operation, cuda={"plain": FAILED if bad else PASSED}, triton={"plain": PASSED}
        )
        counts |= of(operation, cuda=GOOD, triton=GOOD)
    measured = hardware_check.measure(work, counts, verdicts)
    assert len(set(measured)) == 2
    first, second = ([str(word) for word in command.words] for command in commands)
    assert first[first.index("-k") + 1] == "not info_nce"
    assert second[second.index("-k") + 1] == "info_nce"
    assert "--without=cuda" in second
    assert not any("--without" in word for word in first)


def made_workplace(monkeypatch, tmp_path):
    """One whose commands do not run, and the list that they go to."""
    commands = []
    monkeypatch.setattr(Workplace, "__init__", lambda self: None)
    monkeypatch.setattr(Steps, "run", lambda self, *given, **options: commands.extend(given) or [])
    work = Workplace()
    work.source, work.folder, work.environment = ledger.ROOT, tmp_path, dict(os.environ)
    work.steps = Steps(tmp_path / "logs", 300)
    return work, commands


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [((8, 0), "80-real"), ((8, 9), "80-real"), ((9, 0), "90a-real"), ((10, 0), "100"),
     ((10, 3), "100"), ((12, 0), "100"), ((7, 5), "80-real")],
)  # fmt: skip
def test_one_architecture_is_built(capability, architecture):
    assert hardware_check.architecture_of(capability) == architecture
    text = (ledger.ROOT / "CMakeLists.txt").read_text()
    built = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", text).group(1).split()
    assert architecture in built


@pytest.mark.parametrize("tools", [(), ("g++",), ("g++", "nvcc")])
@pytest.mark.parametrize("reports", [False, True])
def test_the_whole_check_without_a_gpu(monkeypatch, tmp_path, tools, reports):
    commands = {}

    def instead_of_running(self, *given, **options):
        for command in given:
            words = [str(word) for word in command.words]
            commands[command.name] = words, dict(command.environment)
        return [self._ended(Outcome(command.name, PASSED, 0.0, None)) for command in given]

    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr(
        "shutil.which", lambda name, path=None: f"/usr/bin/{name}" if name in tools else None
    )
    source = tmp_path / "checkout"
    (source / "benchmarks").mkdir(parents=True)
    if reports:
        (source / "benchmarks/static_report.py").touch()
    monkeypatch.setattr(ledger, "ROOT", source)
    assert hardware_check.without_gpu(tmp_path / "work") == 0

    expected = ["install", "verify cpu", "verify triton", "interpreter", "ahead of time"]
    expected += ["emulated"] if "g++" in tools else []
    expected += ["static report"] if reports and "nvcc" in tools else []
    assert list(commands) == expected
    assert all("CUDAARCHS" not in environment for _, environment in commands.values())
    assert commands["interpreter"][1]["TRITON_INTERPRET"] == "1"
    if "g++" in tools:
        words, environment = commands["emulated"]
        assert words[words.index("-k") + 1] == hardware_check.EMULATED
        assert not any(word.startswith("--ignore") and "emulation" in word for word in words)
        assert "TRITON_INTERPRET" not in environment
    if "static report" in expected:
        assert commands["static report"][0][1:] == [
            str(tmp_path / "work/source/benchmarks/static_report.py")
        ]


def test_the_whole_check_on_a_made_gpu(monkeypatch, tmp_path):
    """Every step's command is built and everything is written; only the commands do not run."""
    commands, environments, together, early = [], {}, [], []
    results = tmp_path / "out/nvidia-h200"

    def instead_of_running(self, *given, **options):
        together.append([command.name for command in given])
        return [run_one(self, command) for command in given]

    def run_one(self, command):
        words = [str(word) for word in command.words]
        commands.append((command.name, words))
        environments[command.name] = dict(command.environment)
        for word in words:
            option, _, value = word.partition("=")
            if option == "--junitxml":
                name = command.name.partition(" ")[2]
                junit(command.cwd, ("tests.test_cosine", f"test_it[{name}]", "")).replace(value)
            if option == "--benchmark-json":
                early.append(json.loads((results / "ledger.json").read_text()))
                early.append(archived(results))
                made = {"machine_info": FACTS, "benchmarks": [{"extra_info": BOTH}]}
                with open(value, "w") as file:
                    json.dump(made, file)
        log = self.logs / f"{len(commands)}.log"
        log.write_text("said\n")
        lost = command.name == "memcheck cuda cosine" and len(together) == 3  # beside the others
        verdict = NO_END if lost else PASSED
        return self._ended(Outcome(command.name, verdict, 0.0, log, 0))

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("machine.describe", lambda device: FACTS)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    assert hardware_check.on_gpu(tmp_path / "work", tmp_path / "out") == 0

    each = [
        f"{b} {operation}" for b in ("cuda", "triton") for operation in sorted(ledger.OPERATIONS)
    ]
    assert together == [
        ["install"],
        [f"verify {of}" for of in each] + ["compile the peers"],
        ["tests cuda", "tests triton"] + [
            f"{tool} {of}"
            for of in each
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
        ],
        ["memcheck cuda cosine"],  # once more, since it came to no end
        ["benchmarks"],
    ]  # fmt: skip
    names = [name for name, _ in commands]
    words = dict(commands)["racecheck cuda info_nce"]
    assert words[:3] == ["/usr/bin/compute-sanitizer", "--tool", "racecheck"]
    assert words[-3:] == ["--verify", "cuda", "info_nce"]
    assert environments["initcheck triton cosine"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert environments["install"]["CUDAARCHS"] == "90a-real"
    assert all("CUDAARCHS" not in environments[name] for name in names[1:])
    assert all(hardware_check.CUDA_TOOLS in made["PATH"] for made in environments.values())
    first = environments["install"]["PATH"].split(os.pathsep)[0]
    assert first == os.path.dirname(sys.executable)  # where cmake and ninja may be
    assert not any("--without" in word for _, words in commands for word in words)

    without_figures, archive = early
    assert ledger.passed(without_figures["kernels"][KERNEL])
    assert "ledger.json" in archive
    made = json.loads((results / "ledger.json").read_text())
    assert made["kernels"][KERNEL]["tests"] == {"passed": 1, "failed": 0}
    assert made["kernels"][CUDA_KERNEL]["sanitizer"]["memcheck"] == PASSED
    assert made["kernels"][CUDA_KERNEL]["benchmarks"][ROW["case"]]["best_ratio"] == 3.0
    assert made["kernels"][KERNEL]["benchmarks"][ROW["case"]]["times_of_ours"] == 2.0
    table = (results / "table.md").read_text()
    assert "NVIDIA H200" in table
    assert "| ours | ours, triton |" in table
    assert {"ledger.json", "benchmarks.json", "table.md", "chart.png"} <= archived(results)
    assert not any("results.tar" in name for name in archived(results))


def archived(results):
    """Names of the files in the archive, which all lie in a folder of the device."""
    with tarfile.open(results / "results.tar.gz") as file:
        assert all(name.startswith(f"{results.name}/") for name in file.getnames())
        return {name.partition("/")[2] for name in file.getnames()}


LOST = "========= Internal Sanitizer Error: Detected a failure to track a kernel launch.\n"


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", PASSED),
        (9, "========= ERROR SUMMARY: 3 errors\n", FAILED),
        (9, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", FAILED),
        (9, LOST + "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
         LOST_TRACK),
        (9, LOST + "========= ERROR SUMMARY: 1 error\n", LOST_TRACK),
        (9, LOST + "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n",
         FAILED),
        (1, LOST + "========= ERROR SUMMARY: 1 error\n", FAILED),  # a wrong number
        (1, "========= ERROR SUMMARY: 0 errors\n", FAILED),
        (255, "========= Error: Target application terminated before first instrumented API call\n",
         NO_END),
        (0, "", NO_END),
    ],
)  # fmt: skip
def test_what_a_sanitizer_says(tmp_path, code, said, verdict):
    log = tmp_path / "log"
    log.write_text(said)
    assert hardware_check.judged(code, log) == verdict


def test_a_verdict_of_its_own(tmp_path):
    """A tool's, by its log: it is no failure, and it is seen in the log of the check."""
    steps = Steps(tmp_path / "logs", 60)
    given = command(tmp_path, "print('0 of 3'); raise SystemExit(9)")

    def judge(code, log):
        return LOST_TRACK if (code, log.read_text()) == (9, "0 of 3\n") else FAILED

    (outcome,) = steps.run(replace(given, judge=judge))
    assert (outcome.verdict, outcome.code) == (LOST_TRACK, 9)
    assert steps.all_passed()
    (outcome,) = steps.run(given)
    assert outcome.verdict == FAILED


def test_so_many_at_once_and_so_long_together(tmp_path):
    code = "import time, sys; time.sleep(1.5)"
    steps = Steps(tmp_path / "logs", 60)
    commands = [command(tmp_path, code, name=f"step {n}") for n in range(3)]
    start = time.monotonic()
    outcomes = steps.run(*commands, at_once=1, seconds=2)
    assert time.monotonic() - start < 8
    assert outcomes[0].verdict == PASSED
    assert outcomes[-1].verdict == TIMED_OUT
    assert outcomes[-1].seconds == 0  # it was never started


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder as --build makes it, and the tree of which it is."""
    tree, site = tmp_path / "tree", tmp_path / "site"
    for name in hardware_check.INSTALLED:
        if "." in name:
            (tree / name).write_text(name)
        else:
            (tree / name).mkdir(parents=True)
            (tree / name / "file.py").write_text(name)
    (site / "logo_kernels").mkdir(parents=True)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (site / f"logo_kernels/_C{suffix}").touch()
    (site / hardware_check.STAMP).write_text(hardware_check.sources_hash(tree))
    return tree, site


def test_a_folder_that_was_built_beforehand(site):
    tree, folder = site
    assert hardware_check.unusable(folder, tree) is None
    (tree / "logo_kernels/_C.cpython-39.so").touch()  # what was built there is no source
    assert hardware_check.unusable(folder, tree) is None


@pytest.mark.parametrize("name", ["csrc/file.py", "setup.py", "csrc/new.cu"])
def test_a_folder_of_other_sources_is_refused(site, name):
    tree, folder = site
    (tree / name).write_text("changed")
    assert "other sources" in hardware_check.unusable(folder, tree)


def test_a_folder_that_is_no_build_is_refused(site):
    tree, folder = site
    for file in (folder / "logo_kernels").iterdir():
        file.unlink()
    assert "with this Python" in hardware_check.unusable(folder, tree)
    (folder / hardware_check.STAMP).unlink()
    assert "--build" in hardware_check.unusable(folder, tree)


def test_nothing_is_installed_where_a_folder_is_given(monkeypatch, tmp_path):
    ran = []

    def instead_of_running(self, *given, **options):
        ran.extend(given)
        return [Outcome(command.name, PASSED, 0.0, None, 0) for command in given]

    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    hardware_check.without_gpu(tmp_path / "work", tmp_path / "site")
    assert "install" not in [command.name for command in ran]
    assert {command.environment["PYTHONPATH"] for command in ran} == {str(tmp_path / "site")}
