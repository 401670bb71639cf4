"""What reaches the ledger, and which figures are kept."""

import json

import pytest

from benchmarks.made import BOTH, CUDA_KERNEL, CUDA_SCALE, FACTS, GOOD, KERNEL, ROW, of
from hardware import ledger, results
from hardware.steps import ABSENT, FAILED, LOST_TRACK, PASSED, TIMED_OUT
from harness import report, tables


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
    made = results.ledger_of(
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
    folder = tree / "benchmarks/results/nvidia-h200"
    folder.mkdir(parents=True)
    results.write_results(folder, made, [measured])
    assert (folder / "benchmarks.json").is_file() == recorded
    assert ledger.inconsistencies(tree) == []
    assert ledger.is_verified(KERNEL, "NVIDIA H200", tree) == recorded


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
    made = results.ledger_of(
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
    folder = tmp_path / "results"
    folder.mkdir()
    results.write_results(folder, made, [measured])
    if shown is None:
        assert not (folder / "benchmarks.json").is_file()
        return
    (row,) = report.load(folder / "benchmarks.json")[1]
    assert tables.ours_of(row) == shown


def test_a_failure_is_that_of_its_operation(tree):
    """What goes wrong in one says nothing of another's kernels."""
    (tree / "csrc/cuda/similarity.cu").write_text("__global__ void kernel() {}\n")
    counts = of(cuda={"passed": 5, "failed": 1}) | of("similarity", cuda=GOOD)
    verdicts = of(cuda={"plain": PASSED}) | of("similarity", cuda={"plain": PASSED})
    entries = results.ledger_of(FACTS, counts, verdicts, [], tree)["kernels"]
    passed = {kernel for kernel, entry in entries.items() if ledger.passed(entry)}
    assert passed == {"csrc/cuda/similarity.cu"}
    assert not ledger.passed(entries[KERNEL])  # of which nothing is known
