"""The arithmetic of timing, on clocks that the tests control."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from harness import timing
from harness.timing import OURS, Pace, Rounds, per_call, plan, summary, take_turns


class FakeClock:
    """Advances only when a step says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def step(self, *seconds):
        durations = itertools.cycle(seconds)

        def run():
            self.now += next(durations)

        return run


class FakeBenchmark:
    """pytest-benchmark's pedantic mode on a fake clock."""

    def __init__(self, clock):
        self.clock = clock
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))

    def pedantic(self, target, teardown, rounds, iterations):
        for _ in range(rounds):
            self.stats.stats.data.append(per_call(target, iterations, self.clock))
            teardown()
        target()
        teardown()  # as the real one does, for the result


def test_summary_of_known_values():
    values = summary([4.0, 1.0, 3.0, 2.0, 5.0])
    assert values == {
        "median": 3.0, "min": 1.0, "low_quartile": 2.0, "high_quartile": 4.0, "iqr": 2.0
    }  # fmt: skip
    assert summary([7.0])["iqr"] == 0


def test_ratio_is_taken_within_a_round():
    # The machine slows down threefold in the last round: medians of times would mix the rounds.
    rounds = Rounds({OURS: [1.0, 1.0, 3.0], "peer": [2.0, 2.0, 6.0]})
    assert rounds.ratio("peer") == summary([2.0, 2.0, 2.0])


def test_ratio_needs_as_many_rounds_of_both():
    with pytest.raises(ValueError, match="shorter"):
        Rounds({OURS: [1.0], "peer": [1.0, 2.0]}).ratio("peer")


def test_plan_gives_equal_slices_and_keeps_to_its_time():
    pace = Pace(slice_seconds=10e-3, case_seconds=1.0, least_rounds=3, most_rounds=20)
    planned = plan({OURS: 1e-3, "peer": 4e-3, "loop": 0.1}, pace)
    assert planned.calls == {OURS: 10, "peer": 3, "loop": 1}
    assert planned.rounds == 8  # 10 + 12 + 100 ms a round
    assert plan({OURS: 2.0}, pace).rounds == 3
    assert plan({OURS: 1e-6}, pace).rounds == 20


def test_contestants_take_turns():
    clock = FakeClock()
    order = []

    def noting(name, step):
        return lambda: (order.append(name), step())

    pace = Pace(slice_seconds=1e-3, case_seconds=1, least_rounds=4, most_rounds=4)
    contestants = {name: noting(name, clock.step(2e-3)) for name in (OURS, "a", "b")}
    rounds = take_turns(FakeBenchmark(clock), contestants, clock, pace)
    timed = order[9:-1]  # three estimates of each before, one call for the result after
    assert timed == [OURS, "a", "b", OURS, "b", "a", OURS, "a", "b", OURS, "b", "a"]
    assert {name: len(seconds) for name, seconds in rounds.seconds.items()} == {
        OURS: 4, "a": 4, "b": 4
    }  # fmt: skip


def test_seconds_are_per_call():
    clock = FakeClock()
    pace = Pace(slice_seconds=10e-3, case_seconds=1, least_rounds=2, most_rounds=2)
    contestants = {OURS: clock.step(1e-3), "peer": clock.step(5e-3)}
    rounds = take_turns(FakeBenchmark(clock), contestants, clock, pace)
    assert rounds.seconds[OURS] == pytest.approx([1e-3, 1e-3])
    assert rounds.ratio("peer")["median"] == pytest.approx(5)


def test_nothing_is_reported_where_nothing_was_timed():
    benchmark = SimpleNamespace(pedantic=lambda *args, **options: None, stats=None)
    clock = FakeClock()
    contestants = {OURS: clock.step(1e-3), "peer": clock.step(1e-3)}
    assert take_turns(benchmark, contestants, clock).seconds == {}


def test_best_is_by_ratios_within_a_round():
    # By medians of their times "b" would win: it did not run while the machine was slow.
    rounds = Rounds({OURS: [1.0, 9.0, 9.0], "a": [1.0, 9.0, 9.0], "b": [2.0, 18.0, 3.0]})
    assert rounds.best(["b", "a"]) == "a"
    assert rounds.best([]) is None


@pytest.mark.parametrize(
    ("flops", "side"),
    [(2 * 5161**3, 5120), (2 * 300**3, 256), (2 * 390**3, 512), (1, 256)],
)
def test_products_have_sides_that_libraries_like(monkeypatch, flops, side):
    given = []
    monkeypatch.setattr(torch, "randn", lambda *size, device: given.append(size) or torch.ones(1))
    monkeypatch.setattr(timing, "fastest", lambda ways, device: ways[0])
    product = timing.matrix_product(flops, "float32", "cpu")
    assert given == [(side, side)] * 2
    assert product.flops == 2 * side**3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_way_of_a_cpu_is_the_product(monkeypatch, dtype):
    """Of the same matrices: a·b, or a·bᵀ, which costs the same."""
    ways = []
    monkeypatch.setattr(timing, "fastest", lambda found, device: ways.extend(found) or found[0])
    matrices = []
    randn = torch.randn
    monkeypatch.setattr(
        torch, "randn", lambda *size, device: matrices.append(randn(size)) or matrices[-1]
    )
    timing.matrix_product(1, dtype, "cpu")
    a, b = (matrix.to(getattr(torch, dtype)).double() for matrix in matrices)
    assert len(ways) == 2 + (dtype == "float32" and torch.backends.mkldnn.is_available())
    for way in ways:
        product = way().double()
        error = min((product - wanted).norm() / wanted.norm() for wanted in (a @ b, a @ b.T))
        assert error < 1e-2


def test_fastest_is_by_its_least_time(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(timing, "clock_of", lambda device: clock)
    often, seldom, steady = clock.step(5.0, 1.0), clock.step(4.0), clock.step(2.0)
    assert timing.fastest([seldom, often, steady], "cpu") is often
    assert timing.fastest([seldom], "cpu") is seldom


@pytest.mark.parametrize("moved", [64, 4096])
def test_copy_moves_what_it_says(moved):
    target = timing.copy_step(moved, "cpu")()
    assert 2 * target.nbytes == moved
    assert target.min() == 1


class FakeEvent:
    """A CUDA event on a fake clock."""

    clock: FakeClock

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = self.clock.now

    def elapsed_time(self, later):
        return 1e3 * (later.at - self.at)  # ms, as the real one


@pytest.fixture
def gpu(monkeypatch):
    """torch.cuda on a clock that only steps and flushes advance."""
    clock = FakeEvent.clock = FakeClock()
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: clock.step(0.5)())
    return clock


def test_gpu_seconds_leave_out_sleep_and_flush(gpu):
    flush = SimpleNamespace(zero_=gpu.step(1.0))
    assert timing._event_seconds(gpu.step(3e-3), 4, None) == pytest.approx(3e-3)
    # the first call, which only measures the host, takes 9 ms and must not count
    steps = gpu.step(9e-3, 2e-3, 1e-3, 4e-3)
    assert timing._event_seconds(steps, 3, flush) == pytest.approx(2e-3)


def test_gpu_rounds_are_of_every_contestant(gpu, monkeypatch):
    """A flush makes the cold calls of "a" slower; the others' time is their own."""
    properties = SimpleNamespace(L2_cache_size=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(timing, "clock_of", lambda device: gpu)
    flushed = []
    flush = SimpleNamespace(zero_=lambda: flushed.append(True))
    monkeypatch.setattr(torch, "empty", lambda *size, **options: flush)

    def a():
        gpu.step(3e-3 if flushed else 1e-3)()
        flushed.clear()

    rounds = timing.device_rounds({"a": a, "b": gpu.step(2e-3)}, rounds=3)
    assert rounds.cold.seconds == {"a": pytest.approx([3e-3] * 3), "b": pytest.approx([2e-3] * 3)}
    assert rounds.warm.ratio("b", "a")["median"] == pytest.approx(2, rel=0.3)


def test_gpu_clock_waits_for_the_device(gpu, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    timing.clock_of("cuda")()
    assert waited == [True]
