"""The hardware check without hardware: its commands, its verdicts, what it leaves."""

import json
import os
import re
import sys
import tarfile

import pytest

from benchmarks.made import BOTH, CUDA_KERNEL, FACTS, GOOD, KERNEL, ROW, junit, of
from hardware import check, counts, ledger, workplace
from hardware.steps import FAILED, LOST_TRACK, NO_END, PASSED, TIMED_OUT, Outcome, Steps
from hardware.workplace import Workplace


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
    assert check.not_worth_measuring("cosine", counts, verdicts) == without
    assert check.not_worth_measuring("similarity", counts, verdicts) == ()


def test_operations_are_measured_apart_where_backends_failed_in_some(monkeypatch, tmp_path):
    work, commands = made_workplace(monkeypatch, tmp_path)
    verdicts, counts = {}, {}
    for operation in ledger.OPERATIONS:
        bad = operation == "info_nce"
        verdicts |= of(
            operation, cuda={"plain": FAILED if bad else PASSED}, triton={"plain": PASSED}
        )
        counts |= of(operation, cuda=GOOD, triton=GOOD)
    measured = check.measure(work, counts, verdicts)
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
    assert check.architecture_of(capability) == architecture
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
    assert check.without_gpu(tmp_path / "work") == 0

    expected = ["install", "verify cpu", "verify triton", "interpreter", "ahead of time"]
    expected += ["emulated"] if "g++" in tools else []
    expected += ["static report"] if reports and "nvcc" in tools else []
    assert list(commands) == expected
    assert all("CUDAARCHS" not in environment for _, environment in commands.values())
    assert commands["interpreter"][1]["TRITON_INTERPRET"] == "1"
    if "g++" in tools:
        words, environment = commands["emulated"]
        assert words[words.index("-k") + 1] == counts.EMULATED
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
        lost = command.name == "memcheck cuda cosine" and len(together) == 2  # beside the others
        verdict = NO_END if lost else PASSED
        return self._ended(Outcome(command.name, verdict, 0.0, log, 0))

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("harness.machine.describe", lambda device: FACTS)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    assert check.on_gpu(tmp_path / "work", tmp_path / "out") == 0

    each = [
        f"{b} {operation}" for b in ("cuda", "triton") for operation in sorted(ledger.OPERATIONS)
    ]
    assert together == [
        ["install"],
        ["tests cuda", "tests triton"] + [f"verify {of}" for of in each] + ["compile the peers"] + [
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
    assert all(workplace.CUDA_TOOLS in made["PATH"] for made in environments.values())
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
    assert check.judged(code, log) == verdict


def test_nothing_is_installed_where_a_folder_is_given(monkeypatch, tmp_path):
    ran = []

    def instead_of_running(self, *given, **options):
        ran.extend(given)
        return [Outcome(command.name, PASSED, 0.0, None, 0) for command in given]

    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    check.without_gpu(tmp_path / "work", tmp_path / "site")
    assert "install" not in [command.name for command in ran]
    assert {command.environment["PYTHONPATH"] for command in ran} == {str(tmp_path / "site")}
