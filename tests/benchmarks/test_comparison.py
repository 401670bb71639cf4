"""From figures to headline, and what becomes of a peer that fails or is wrong."""

from functools import partial
from types import SimpleNamespace

import pytest

import bench_cosine
import comparison
import inputs
import peers
from cases import CosineCase
from comparison import COPY, headline
from peers import Prepared
from timing import OURS, per_call

CASE = CosineCase(3, 2, 3, 8, "float32", "small")


def figures(**ratios):
    return {
        OURS: {"median": 2e-3},
        COPY: {"median": 1e-3, "ratio": {"median": 0.5}},
        **{name: {"ratio": {"median": ratio}} for name, ratio in ratios.items()},
    }


def test_best_peer_has_the_lowest_ratio():
    columns = headline(
        figures(pairs=80.0, products=7.0, sums=0.9), ["pairs", "products", "sums"], 4
    )
    assert (columns["best_peer"], columns["best_ratio"]) == ("sums", 0.9)
    assert columns["fraction_of_copy"] == 0.5
    assert columns["bytes_per_second"] == 2000


def test_copy_is_no_peer():
    assert headline(figures(), [], 4)["best_peer"] is None


def test_gpu_bandwidth_is_of_gpu_time_with_a_flushed_cache():
    times = figures(sums=3.0)
    times[OURS]["device_seconds"] = {"cold": 4e-5, "warm": 2e-5}
    times[COPY]["device_seconds"] = {"cold": 3e-5, "warm": 1e-5}
    columns = headline(times, ["sums"], 4_000_000)
    assert columns["fraction_of_copy"] == pytest.approx(0.75)
    assert columns["bytes_per_second"] == pytest.approx(1e11)


class FewRounds:
    """pytest-benchmark's fixture with its real stats left out."""

    def __init__(self):
        self.extra_info = {}
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, teardown, rounds, iterations):
        from time import perf_counter

        for _ in range(rounds):
            self.stats.stats.data.append(per_call(target, iterations, perf_counter))
            teardown()


def compared(ours, prepared):
    benchmark = FewRounds()
    comparison.compare(
        benchmark, CASE, "cpu", "reference", inputs.cosine_inputs(CASE, "cpu"), ours,
        partial(bench_cosine.loss, backend="reference"), prepared,
    )  # fmt: skip
    return benchmark.extra_info


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("timing.Pace", lambda: SHORT)


SHORT = SimpleNamespace(slice_seconds=1e-4, case_seconds=0.1, least_rounds=2, most_rounds=3)


def test_wrong_and_failing_peers_are_left_out_by_name():
    def raises(*crops):
        raise RuntimeError("no compiler\nand a long story")

    info = compared(
        bench_cosine.loss,
        [
            Prepared("sums", peers.sums),
            Prepared("wrong", lambda x, y, t: 1.01 * peers.sums(x, y, t)),
            Prepared("raises", raises),
        ],
    )
    assert info["best_peer"] == "sums"
    assert set(info["contestants"]) == {OURS, "sums", COPY}
    assert info["excluded"]["raises"] == "RuntimeError: no compiler"
    assert "off by" in info["excluded"]["wrong"]
    assert info["contestants"][OURS]["peak_bytes"] >= CASE.images * 5 * CASE.dim * 4


def test_ours_is_not_timed_when_it_is_wrong():
    with pytest.raises(AssertionError, match="a wrong result is not timed"):
        compared(lambda x, y, t: 1.01 * bench_cosine.loss(x, y, t), [])
