"""The sweep goes on where it stopped, and its report says what the runs say."""

import json
import math
import sys

import pytest

from ablation import __main__ as command
from ablation import comparison, report
from ablation import plan as arms
from ablation.comparison import BASE, MULTI_CROP, Difference
from ablation.runs import read_runs
from config import Config

TINY = (
    "--quick", "--workers", "1", "--frameworks", "moco", "--local-crops", "2", "--trainer.scenes",
    "64", "24", "--trainer.image-size", "32", "--trainer.batch-size", "16", "--trainer.epochs", "1",
    "--trainer.dim", "16", "--trainer.global-size", "16", "--trainer.local-size", "8",
)  # fmt: skip


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Runs the command with few arms; returns the lines of runs.jsonl."""
    monkeypatch.setattr(arms, "FIRST", [arms.BASE, arms.MULTI_CROP, arms.OFFICIAL])
    monkeypatch.setattr(arms, "SECOND", [])

    def run(*more: str) -> list[dict]:
        monkeypatch.setattr(sys, "argv", ["ablation", *TINY, "--out", str(tmp_path), *more])
        command.main()
        return [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]

    return run


def test_a_sweep_writes_a_report_and_continues_where_it_stopped(sweep, tmp_path, capsys):
    lines = sweep()
    assert [line["arm"] for line in lines] == [BASE, MULTI_CROP, "learned, clipped"]
    assert [line["forwards"] for line in lines] == [4, 6, 6]
    for line in lines:
        assert all(0 < line[metric] < 1 for metric in report.METRICS)
        assert line["steps"] == 4
        assert line["cpu_ms_per_step"] > 0
    assert [line["objective"] is None for line in lines] == [True, True, False]
    page = (tmp_path / "README.md").read_text()
    assert "3 of 3 runs" in page
    assert "one seed: no verdict" in page
    for name in ("multi-crop.png", "repulsion.png", "cost.png"):
        assert (tmp_path / name).stat().st_size > 1000
        assert f"({name})" in page

    # A kill while the last line was written: that run alone comes again.
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines[:2]) + '\n{"framework": "mo')
    capsys.readouterr()
    with pytest.raises(json.JSONDecodeError):  # the torn line is still there, and still skipped
        sweep()
    assert "3 runs, 2 of them done" in capsys.readouterr().out
    again = read_runs(path)
    assert [line["arm"] for line in again] == [line["arm"] for line in lines]
    assert again[2]["knn"] == lines[2]["knn"]  # with the same result


def test_arms_of_a_seed_differ_in_what_they_are_named_for_alone():
    runs = arms.plan(arms.Sweep())
    assert len({run.key for run in runs}) == len(runs)
    first = runs[: 2 * len(arms.FIRST) * 3]
    assert [run.config.seed for run in first] == sorted(run.config.seed for run in first)
    assert {run.config.local_crops for run in first} == {2}
    steps = {(r.config.epochs, r.config.batch_size, r.config.scenes, r.config.lr) for r in runs}
    assert len(steps) == 1


def test_the_published_runs_are_those_that_the_command_would_skip():
    """A setting that comes later must not turn them into others: see NOT_KEYED."""
    planned = arms.plan(arms.Sweep(trainer=Config(epochs=10)))
    finished = {run["key"] for run in read_runs(arms.RESULTS / "runs.jsonl")}
    assert finished == {run.key for run in planned}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "0"), "--workers: got 0"),
        (("--seeds", "0"), "--seeds: got 0"),
        (("--local-crops", "1"), "--local-crops: got 1; want at least 2"),
        (
            ("--trainer.scenes", "40", "24"),
            "--trainer.scenes: got 40 to train on; want at least 50",
        ),
        (("--trainer.epochs", "0"), "--epochs: got 0"),
        (("--out", "/dev/null"), "--out /dev/null: a file"),
    ],
)
def test_a_slip_is_one_line(sweep, words, message):
    with pytest.raises(SystemExit) as caught:
        sweep(*words)
    assert caught.value.code.startswith("error: ")
    assert message in caught.value.code


def test_lines_of_runs_that_are_none_are_skipped(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b'[1]\n{"key": "x"}\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    assert read_runs(path) == []
    assert capsys.readouterr().out.count("skipped a line") == 4


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([], "no runs yet"),
        ([0.3], "one seed: no verdict"),
        ([0.1, 0.1, 0.1], "better"),
        ([-0.10, -0.11, -0.12], "worse"),
        ([0.1, -0.1, 0.1], "within noise"),
        ([0.0, 0.0], "within noise"),
        ([0.02, 0.02, 0.10], "within noise"),  # mean 0.047, 2 sd / √3 = 0.053
        ([0.03, 0.03, 0.10], "better"),  # mean 0.053, 2 sd / √3 = 0.047
    ],
)
def test_the_rule_of_the_verdict(gaps, verdict):
    results = [
        {"framework": "moco", "arm": arm, "local_crops": 2, "seed": seed, "knn": value}
        for seed, gap in enumerate(gaps)
        for arm, value in ((BASE, 0.5), (MULTI_CROP, 0.5 + gap))
    ]
    found = comparison.Runs(results).difference(("moco", MULTI_CROP, 2), ("moco", BASE, 2), "knn")
    assert found.verdict == verdict
    assert found.n == len(gaps)


def test_only_seeds_that_both_arms_have_are_paired():
    results = [
        {"framework": "moco", "arm": arm, "local_crops": 2, "seed": seed, "knn": value}
        for arm, seed, value in (
            (BASE, 0, 0.1), (BASE, 1, 0.9), (MULTI_CROP, 0, 0.3), (MULTI_CROP, 2, 0.9),
        )
    ]  # fmt: skip
    found = comparison.Runs(results).difference(("moco", MULTI_CROP, 2), ("moco", BASE, 2), "knn")
    assert (found.n, found.mean) == (1, pytest.approx(0.2))
    assert math.isnan(found.sd)
    assert str(Difference(3, 0.01, 0.002)) == "+0.010 ± 0.002 (n = 3)"


def test_the_report_of_an_unfinished_sweep_says_what_is_missing(tmp_path):
    """Synthetic: cosine repulsion is better by 0.05 with every seed, and L = 4 was not begun."""
    runs = arms.plan(arms.Sweep(local_crops=(2, 4), frameworks=("simsiam",)))
    results = []
    for run in runs:
        if run.config.local_crops == 2 and run.config.seed < 2:
            gain = 0.05 if run.arm.startswith("cosine") else 0.0
            value = 0.4 + 0.01 * run.config.seed + gain
            results.append(
                dict.fromkeys(("knn", "linear", "linear_10"), value)
                | {"framework": run.framework, "arm": run.arm, "local_crops": 2}
                | {"seed": run.config.seed, "cpu_ms_per_step": 100.0, "forwards": 4, "torch": "2"}
                | {"objective": 1.3 if run.arm.startswith("learned") else None}
            )
    expected = [(r.framework, r.arm, r.config.local_crops, r.config.seed) for r in runs]
    report.write(results, expected, Config(), "the command", tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert f"`the command` wrote this page from `runs.jsonl`: {len(results)} of {len(runs)}" in page
    assert "| SimSiam | cosine, λ = 0.1 − λ = 0 | +0.050 ± 0.000 (n = 2): better |" in page
    assert "| SimSiam | learned, clipped | 2 | 1.300 ± 0.000 |" in page
    assert "repulsion against λ = 0, L = 2, kNN mAP: better in 3 of" in page
    assert "L = 4 against 2, kNN mAP: no two seeds to compare yet" in page
    assert "SimSiam, multi-crop, L = 2: 2 of 3 seeds" in page
    assert "SimSiam, learned, clipped, L = 4: 0 of 3 seeds" in page
    assert (tmp_path / "local-crops.png").exists()
