"""Host overhead: beside an empty Function, with goals for the median."""

import pytest

import bench_overhead
from benchmarks.made import FewRounds
from harness.timing import OURS, Rounds


@pytest.mark.parametrize("case", bench_overhead.CASES["cpu"], ids=lambda case: case.id)
def test_overhead_is_told_in_times_of_an_empty_function(monkeypatch, case):
    made = bench_overhead.contest(case, "cpu")
    assert made.peers == []
    assert made.baselines[bench_overhead.EMPTY]().shape == ()
    monkeypatch.setattr(
        bench_overhead, "compare",
        lambda *given: Rounds({OURS: [6.0, 60.0, 6.0], bench_overhead.EMPTY: [2.0, 20.0, 1.0]}),
    )  # fmt: skip
    benchmark = FewRounds()
    bench_overhead.test_overhead(benchmark, case, "cpu")
    assert benchmark.extra_info["times_of_empty"]["median"] == 3
    goal = {"cosine": 2.5, "info_nce": 4.0, "affinity": 8.0}[case.operation]
    of = "affinity, frozen" if case.frozen else case.operation
    assert (benchmark.extra_info["of"], benchmark.extra_info["goal"]) == (of, goal)
