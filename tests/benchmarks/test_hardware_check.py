"""The hardware check without hardware: budgets, verdicts, and what reaches the ledger."""

import json
import os
import re
import sys
import time
from dataclasses import replace

import pytest

import hardware_check
import ledger
import report
from hardware_check import Workplace
from steps import ABSENT, FAILED, PASSED, TIMED_OUT, Command, Outcome, Steps

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


def test_tests_are_counted_per_backend(tmp_path):
    path = junit(
        tmp_path,
        ("tests.triton_kernels.test_tiles", "test_one", ""),
        ("tests.test_loss", "test_golden[triton-float32]", ""),
        ("tests.test_loss", "test_golden[triton-float16]", "<skipped/>"),
        ("tests.test_loss", "test_golden[cuda-float32]", "<failure/>"),
        ("tests.test_loss", "test_golden[cuda-cuda]", ""),
        ("tests.test_loss", "test_golden[emulated-80]", ""),
        ("tests.test_loss", "test_golden[emulated-90-cuda]", "<failure/>"),
        ("tests.cuda_kernels.test_walk", "test_it[sm_80]", "<failure/>"),
        ("tests.emulation.test_emulator", "test_it", "<error/>"),
        ("tests.test_loss", "test_cuda_is_named", ""),
        ("tests.test_backends", "test_auto[cuda-reasons0-cuda]", ""),
    )
    assert hardware_check.count_tests(path) == {
        "triton": {"passed": 2, "failed": 0}, "cuda": {"passed": 1, "failed": 1}
    }  # fmt: skip


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
    monkeypatch.setattr(Workplace, "parallel", lambda self: [])
    work = Workplace()
    work.source, work.folder, work.environment = ledger.ROOT, tmp_path, dict(os.environ)
    work.steps = Steps(tmp_path / "logs", 300)

    made = tests(work)
    work.steps.run(replace(made, words=[*made.words, "--collect-only"]))
    lines = work.steps.outcomes[-1].log.read_text().splitlines()
    found = [line.split("::", 1) for line in lines if "::" in line]
    return [(path.removesuffix(".py").replace("/", "."), name) for path, name in found]


def test_the_gpu_runs_tests_of_its_backends_alone(monkeypatch, tmp_path):
    """Of this project's own tests: what is selected is what is counted."""
    found = collected(
        monkeypatch, tmp_path, lambda work: hardware_check.gpu_tests(work, tmp_path / "x.xml")
    )
    owners = [hardware_check.backend_of_test(*test) for test in found]
    assert set(owners) == {"triton", "cuda"}
    of_cuda = {module for (module, _), owner in zip(found, owners, strict=True) if owner == "cuda"}
    assert of_cuda >= {"tests.test_cosine", "tests.test_similarity"}
    assert {module for module, _ in found if "triton_kernels" in module}


def test_the_emulator_runs_tests_of_its_own_alone(monkeypatch, tmp_path):
    found = collected(
        monkeypatch, tmp_path, lambda work: hardware_check.emulated_tests(work, tmp_path / "x.xml")
    )
    assert {hardware_check.backend_of_test(*test) for test in found} == {"emulated"}
    assert {"tests.test_cosine", "tests.cuda_kernels.test_walk"} <= {module for module, _ in found}
    assert any(module.startswith("tests.emulation.") for module, _ in found)
    assert "tests.cuda_kernels.test_static" not in {module for module, _ in found}


def test_a_failure_that_names_no_backend_counts_for_all(tmp_path):
    path = junit(tmp_path, ("", "tests.test_properties", "<error/>"))
    assert hardware_check.count_tests(path) == {
        backend: {"passed": 0, "failed": 1} for backend in ("triton", "cuda")
    }


def test_no_report_means_nothing_passed(tmp_path):
    counts = hardware_check.count_tests(tmp_path / "absent.xml")
    assert all(count["passed"] == 0 for count in counts.values())


ROW = {
    "operation": "cosine", "case": "cosine-1024x2x8x2048-bfloat16", "device": "cuda",
    "backend": "triton", "contestants": {"ours": {"median": 5e-5}}, "best_peer": "sums",
    "best_ratio": 3.0, "fraction_of_copy": 0.9, "kernels": {"ours": [KERNEL]},
}  # fmt: skip
FACTS = {
    "device": "NVIDIA H200", "driver_version": "580", "clocks.sm": "1980 MHz",
    "python": "3.12", "torch": "2.11", "triton": "3.6", "cuda": "13.0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("failed", "racecheck", "recorded"),
    [(0, PASSED, True), (0, ABSENT, True), (1, PASSED, False), (0, TIMED_OUT, False)],
)
def test_figures_are_recorded_only_of_what_passed(
    tree, monkeypatch, tmp_path, failed, racecheck, recorded
):
    monkeypatch.setattr(report, "record", lambda *paths: None)
    made = hardware_check.ledger_of(
        FACTS,
        {"triton": {"passed": 5, "failed": failed}, "cuda": {"passed": 0, "failed": 0}},
        {"triton": {"plain": PASSED, "racecheck": racecheck}, "cuda": {"plain": FAILED}},
        [ROW],
        tree,
    )
    assert ("benchmarks" in made["kernels"][KERNEL]) == recorded
    assert "benchmarks" not in made["kernels"]["csrc/cuda/cosine.cu"]

    measured = tmp_path / "benchmarks.json"
    measured.write_text(json.dumps({"machine_info": FACTS, "benchmarks": [{"extra_info": ROW}]}))
    results = tree / "benchmarks/results/nvidia-h200"
    results.mkdir(parents=True)
    hardware_check.write_results(results, made, measured)
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
        {backend: {"passed": 5, "failed": 0} for backend in ("triton", "cuda")},
        {"triton": {"memcheck": triton}, "cuda": {"memcheck": cuda}},
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
    hardware_check.write_results(results, made, measured)
    if shown is None:
        assert not (results / "benchmarks.json").is_file()
        return
    (row,) = report.load(results / "benchmarks.json")[1]
    assert report.ours_of(row) == shown


@pytest.mark.parametrize(
    ("triton", "cuda", "without"),
    [
        (PASSED, PASSED, []),
        (PASSED, FAILED, ["cuda"]),
        (TIMED_OUT, PASSED, ["triton"]),
        (FAILED, FAILED, []),
    ],
)
def test_what_failed_is_not_measured_if_another_passed(triton, cuda, without):
    counts = {backend: {"passed": 1, "failed": 0} for backend in ("triton", "cuda")}
    verdicts = {"cuda": {"plain": cuda}, "triton": {"plain": triton}}
    assert hardware_check.not_worth_measuring(counts, verdicts) == without


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

    def instead_of_running(self, *given):
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

    expected = ["install", "small cases triton", "interpreter", "ahead of time"]
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
    commands, environments, together = [], {}, []

    def instead_of_running(self, *given):
        together.append([command.name for command in given])
        return [run_one(self, command) for command in given]

    def run_one(self, command):
        words = [str(word) for word in command.words]
        commands.append((command.name, words))
        environments[command.name] = dict(command.environment)
        for word in words:
            option, _, value = word.partition("=")
            if option == "--junitxml":
                passed = [
                    ("tests.test_cosine", f"test_it[{name}]", "") for name in ("triton", "cuda")
                ]
                junit(command.cwd, *passed).replace(value)
            if option == "--benchmark-json":
                made = {"machine_info": FACTS, "benchmarks": [{"extra_info": BOTH}]}
                with open(value, "w") as file:
                    json.dump(made, file)
        log = tmp_path / "log"
        log.write_text("Target application failed to connect\n")
        lost = command.name == "memcheck cuda" and len(together) == 3  # beside the others
        return self._ended(Outcome(command.name, FAILED if lost else PASSED, 0.0, log))

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("machine.describe", lambda device: FACTS)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    assert hardware_check.on_gpu(tmp_path / "work", tmp_path / "out") == 0

    assert together == [
        ["install"],
        ["small cases cuda", "small cases triton", "compile the peers"],
        ["tests"] + [
            f"{tool} {backend}"
            for backend in ("cuda", "triton")
            for tool in ("memcheck", "racecheck", "initcheck", "synccheck")
        ],
        ["memcheck cuda"],  # once more, since it came to no conclusion
        ["benchmarks"],
    ]  # fmt: skip
    names = [name for name, _ in commands]
    assert dict(commands)["racecheck cuda"][:3] == [
        "/usr/bin/compute-sanitizer", "--tool", "racecheck"
    ]  # fmt: skip
    assert environments["initcheck triton"]["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
    assert environments["install"]["CUDAARCHS"] == "90a-real"
    assert all("CUDAARCHS" not in environments[name] for name in names[1:])
    assert all(hardware_check.CUDA_TOOLS in made["PATH"] for made in environments.values())
    assert not any("--without" in word for _, words in commands for word in words)
    results = tmp_path / "out/nvidia-h200"
    made = json.loads((results / "ledger.json").read_text())
    assert made["kernels"][KERNEL]["tests"] == {"passed": 1, "failed": 0}
    assert made["kernels"][CUDA_KERNEL]["benchmarks"][ROW["case"]]["best_ratio"] == 3.0
    assert made["kernels"][KERNEL]["benchmarks"][ROW["case"]]["times_of_ours"] == 2.0
    table = (results / "table.md").read_text()
    assert "NVIDIA H200" in table
    assert "| ours | ours, triton |" in table
    assert (results / "chart.png").is_file()


@pytest.mark.parametrize(
    ("said", "concluded"),
    [
        ("========= ERROR SUMMARY: 3 errors\n", True),
        ("========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n", True),
        (
            "========= Error: Target application terminated before first instrumented API call\n",
            False,
        ),
    ],
)
def test_a_sanitizer_that_found_something_has_concluded(tmp_path, said, concluded):
    log = tmp_path / "log"
    log.write_text(said)
    assert hardware_check.concluded(Outcome("memcheck cuda", FAILED, 1.0, log)) == concluded
