"""The hardware check without hardware: budgets, verdicts, and what reaches the ledger."""

import json
import os
import sys
import time

import pytest

import hardware_check
import ledger
import report
from steps import ABSENT, FAILED, PASSED, TIMED_OUT, Outcome, Steps

KERNEL = "logo_kernels/backends/triton/cosine.py"


def run(steps, tmp_path, code, seconds=20.0):
    return steps.run("a step", [sys.executable, "-c", code], seconds, tmp_path, os.environ)


def test_steps_go_on_after_a_failure(tmp_path):
    steps = Steps(tmp_path / "logs", 60)
    assert run(steps, tmp_path, "print('first'); raise SystemExit(3)").verdict == FAILED
    assert run(steps, tmp_path, "print('second')").verdict == PASSED
    assert steps.absent("a tool").verdict == ABSENT
    assert not steps.all_passed()
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == [
        "01-a-step.log", "02-a-step.log"
    ]  # fmt: skip
    assert (tmp_path / "logs/02-a-step.log").read_text() == "second\n"


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
        ("tests.triton.test_tiles", "test_one", ""),
        ("tests.test_loss", "test_golden[triton-float32]", ""),
        ("tests.test_loss", "test_golden[triton-float16]", "<skipped/>"),
        ("tests.test_loss", "test_golden[cuda-float32]", "<failure/>"),
    )
    assert hardware_check.count_tests(path) == {
        "triton": {"passed": 2, "failed": 0}, "cuda": {"passed": 0, "failed": 1}
    }  # fmt: skip


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
    "best_ratio": 3.0, "fraction_of_copy": 0.9,
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
    hardware_check.write_results(results, made, measured, tree)
    assert (results / "benchmarks.json").is_file() == recorded
    assert ledger.inconsistencies(tree) == []
    assert ledger.is_verified(KERNEL, "NVIDIA H200", tree) == recorded


def test_the_whole_check_on_a_made_gpu(monkeypatch, tmp_path):
    """Every step's command is built and everything is written; only the commands do not run."""
    commands = []

    def instead_of_running(self, name, command, seconds, cwd, environment):
        words = [str(word) for word in command]
        commands.append((name, words))
        for word in words:
            option, _, value = word.partition("=")
            if option == "--junitxml":
                junit(cwd, ("tests.triton.test_cosine", "test_it", "")).replace(value)
            if option == "--benchmark-json":
                contestants = {
                    "ours": {"median": 1e-4, "peak_bytes": 1},
                    "sums": {"median": 3e-4, "peak_bytes": 1, "ratio": {"median": 3.0}},
                }
                extra = {
                    **ROW, "size": "(1024, 2, 8, 2048)", "dtype": "bfloat16", "view_major": False,
                    "moved_bytes": 92_274_688, "bytes_per_second": 4e12, "excluded": {},
                    "contestants": contestants,
                }  # fmt: skip
                made = {"machine_info": FACTS, "benchmarks": [{"extra_info": extra}]}
                with open(value, "w") as file:
                    json.dump(made, file)
        return self._ended(Outcome(name, PASSED, 0.0, None))

    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Steps, "run", instead_of_running)
    monkeypatch.setattr("machine.describe", lambda device: FACTS)
    monkeypatch.setattr("shutil.which", lambda name, path=None: f"/usr/bin/{name}")
    assert hardware_check.on_gpu(tmp_path / "work", tmp_path / "out") == 0

    names = [name for name, _ in commands]
    assert names[:2] == ["install", "tests"]
    assert {"memcheck triton", "racecheck triton", "initcheck triton", "synccheck triton"} <= set(
        names
    )
    assert names[-2:] == ["compile the peers", "benchmarks"]
    results = tmp_path / "out/nvidia-h200"
    made = json.loads((results / "ledger.json").read_text())
    assert made["kernels"][KERNEL]["tests"] == {"passed": 1, "failed": 0}
    assert made["kernels"][KERNEL]["benchmarks"][ROW["case"]]["best_ratio"] == 3.0
    assert "NVIDIA H200" in (results / "table.md").read_text()
    assert (results / "chart.png").is_file()
