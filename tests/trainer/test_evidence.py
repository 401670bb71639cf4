"""Seeds are added where they are needed; it goes on where it stopped; the table says which."""

import json
import sys

import pytest

from ablation import evidence
from ablation.evidence import Comparison, Evidence
from config import Config

TINY = Config(
    scenes=(64, 24), image_size=32, batch_size=16, epochs=1, dim=16, global_size=16, local_size=8
)
COSINE, LEARNED = evidence.REPELLING


def fake(gaps):
    """A measure() whose kNN is multi-crop's, different with each seed, plus gaps(arm, seed)."""

    def measure(run):
        seed = run.config.seed
        knn = 0.4 + 0.05 * (seed % 3) + gaps(run.arm, seed)
        return {
            "framework": run.framework, "arm": run.arm, "local_crops": run.config.local_crops,
            "seed": seed, "knn": knn, "linear": 0.5, "linear_10": 0.5, "torch": "2",
            "key": run.key,
        }  # fmt: skip

    return measure


@pytest.fixture
def collect(monkeypatch, tmp_path):
    """Runs the command on moco with one worker; returns (arm, seed) of its lines, and its page."""

    def run(measure, **settings):
        if measure is not None:
            monkeypatch.setattr(evidence, "measure", measure)
        asked = {"out": tmp_path, "workers": 1, "frameworks": ("moco",), "trainer": TINY} | settings
        evidence.collect(Evidence(**asked), "the command")
        path = tmp_path / "runs.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        runs = [json.loads(line) for line in lines]
        return [(r["arm"], r["seed"]) for r in runs], (tmp_path / "evidence.md").read_text()

    return run


def test_seeds_are_added_until_each_interval_is_narrow(collect):
    """Cosine gains 0.03 ± 0.002 with every seed; learned swings by 0.1 and is never narrow."""

    def gaps(arm, seed):
        swing = 1 if seed % 2 else -1
        return {COSINE.name: 0.03 + 0.002 * swing, LEARNED.name: 0.1 * swing}.get(arm, 0.0)

    runs, page = collect(fake(gaps), seeds=8)
    assert [seed for arm, seed in runs if arm == COSINE.name] == [0, 1, 2]
    assert [seed for arm, seed in runs if arm == LEARNED.name] == list(range(8))
    assert [seed for arm, seed in runs if arm == "multi-crop"] == list(range(8))
    assert [seed for _, seed in runs] == sorted(seed for _, seed in runs)
    # t(0.975, 2) = 4.303, sd = 0.00231: 0.0293 ± 0.0057
    assert "| moco | cosine, λ = 0.1 | 3 | +0.029 | +0.024 to +0.035 | better | narrow |" in page
    assert "| moco | learned, λ = 0.01 | 8 | +0.000 |" in page
    assert "| no difference seen | undecided: all seeds |" in page


def test_it_stops_when_the_time_is_up_and_goes_on_from_there(collect, monkeypatch):
    clock = iter(range(0, 10_000, 20))  # each look at it is 20 seconds later
    monkeypatch.setattr(evidence.time, "monotonic", lambda: next(clock))
    measure = fake(lambda arm, seed: 0.05 if seed % 2 else -0.05 if arm != "multi-crop" else 0.0)
    first, page = collect(measure, minutes=1.5, seeds=4)
    assert first == [("multi-crop", 0), (COSINE.name, 0), (LEARNED.name, 0), ("multi-crop", 1)]
    assert page.count("| – | – | undecided: the time is up |") == 2
    more, page = collect(measure, minutes=1000, seeds=4)
    assert more[:4] == first
    assert len(set(more)) == len(more) == 12
    assert page.count("| undecided: all seeds |") == 2
    assert collect(measure, minutes=1000, seeds=4)[0] == more


def test_other_settings_do_not_count(collect):
    runs, _ = collect(fake(lambda arm, seed: 0.0), seeds=1)
    assert len(runs) == 3
    trainer = Config(**{**vars(TINY), "epochs": 2})
    runs, page = collect(fake(lambda arm, seed: 0.0), seeds=1, trainer=trainer)
    assert len(runs) == 6
    assert "from 3 runs" in page


def test_two_seeds_that_agree_are_not_narrow():
    for n, narrow in ((2, False), (3, True)):
        difference = evidence.Difference(n, 0.01, 0.0)
        assert Comparison("moco", COSINE, difference).narrow(0.02) is narrow


def test_real_runs(collect):
    runs, page = collect(None, seeds=1)
    assert runs == [("multi-crop", 0), (COSINE.name, 0), (LEARNED.name, 0)]
    assert "undecided: all seeds" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", "0"), "--workers: got 0"),
        (("--seeds", "0"), "--seeds: got 0"),
        (("--minutes", "nan"), "--minutes: got nan"),
        (("--width", "0"), "--width: got 0.0"),
        (("--trainer.local-crops", "1"), "--local-crops: got 1; want at least 2"),
        (("--trainer.dataset", "fashion-scenes"), "--dataset fashion-scenes needs --data"),
    ],
)
def test_a_slip_is_one_line(monkeypatch, tmp_path, words, message):
    monkeypatch.setattr(sys, "argv", ["evidence", "--out", str(tmp_path), *words])
    with pytest.raises(SystemExit) as caught:
        evidence.main()
    assert message in caught.value.code
