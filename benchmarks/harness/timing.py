"""Timing that can be trusted on a shared machine: contestants take turns, ratios are per round.

In every round each contestant runs once, as a slice of a few milliseconds, so that whatever the
machine does meanwhile happens to all of them. Reported are the median, minimum and interquartile
range over rounds, and ratios as the median of the ratio within a round. Ours runs under
pytest-benchmark, the others right after it in the same round, in rotating order.

On a GPU the clock waits for the device before it is read (queue many, synchronise once): that is
what a program feels, host overhead included. Device time alone is taken by events behind a
sleeping kernel, with the L2 flushed before every call (cold) and without (warm).
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

Step = Callable[[], Any]
Clock = Callable[[], float]

OURS = "ours"


@dataclass(frozen=True)
class Pace:
    """How long to measure: slices long against the clock, and a bound for one whole case."""

    slice_seconds: float = 4e-3
    case_seconds: float = 4.0
    least_rounds: int = 7
    most_rounds: int = 41


@dataclass
class Plan:
    """How often each contestant is called in one round, and how many rounds there are."""

    calls: dict[str, int]
    rounds: int


@dataclass
class Rounds:
    """Seconds per call of every contestant, round by round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    def summary(self, name: str) -> dict[str, float]:
        return summary(self.seconds[name])

    def ratio(self, slower: str, faster: str = OURS) -> dict[str, float]:
        """How many times the time of `faster` does `slower` take: median and quartiles."""
        pairs = zip(self.seconds[slower], self.seconds[faster], strict=True)
        return summary([a / b for a, b in pairs])

    def best(self, names: Iterable[str]) -> str | None:
        """The fastest of them, by ratios within a round; None of none."""
        return min(names, key=lambda name: self.ratio(name)["median"], default=None)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and quartiles; of a single value, that value."""
    if len(values) == 1:
        low = high = values[0]
    else:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": statistics.median(values),
        "min": min(values),
        "low_quartile": low,
        "high_quartile": high,
        "iqr": high - low,
    }


def plan(estimates: dict[str, float], pace: Pace) -> Plan:
    """Slices of about the same length for all; as many rounds as the case has time for."""
    calls = {name: max(1, math.ceil(pace.slice_seconds / t)) for name, t in estimates.items()}
    round_seconds = sum(calls[name] * t for name, t in estimates.items())
    rounds = int(pace.case_seconds / round_seconds)
    return Plan(calls, max(pace.least_rounds, min(pace.most_rounds, rounds)))


def per_call(step: Step, calls: int, clock: Clock) -> float:
    """Seconds per call of a slice of calls between two readings of the clock."""
    start = clock()
    for _ in range(calls):
        step()
    return (clock() - start) / calls


def clock_of(device: str) -> Clock:
    """A wall clock that, on a GPU, waits for all queued work before it is read."""
    if device != "cuda":
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def take_turns(
    benchmark: Any, contestants: dict[str, Step], clock: Clock, pace: Pace | None = None
) -> Rounds:
    """Times all contestants in interleaved rounds; the one named `OURS` by pytest-benchmark.

    The fixture's own clock must be `clock` too (see conftest.py). Contestants are warm already.
    """
    estimates = {
        name: min(per_call(step, 1, clock) for _ in range(3)) for name, step in contestants.items()
    }
    planned = plan(estimates, pace or Pace())
    others = [name for name in contestants if name != OURS]
    rounds = Rounds({name: [] for name in contestants})

    def others_in_turn() -> None:
        done = len(rounds.seconds[others[0]]) if others else planned.rounds
        if done == planned.rounds:
            return  # pytest-benchmark calls once more for the result
        for position in range(len(others)):
            name = others[(position + done) % len(others)]
            rounds.seconds[name].append(per_call(contestants[name], planned.calls[name], clock))

    gc.collect()
    gc.disable()
    try:
        benchmark.pedantic(
            contestants[OURS],
            teardown=others_in_turn,
            rounds=planned.rounds,
            iterations=planned.calls[OURS],
        )
    except KeyboardInterrupt:
        benchmark.has_error = True  # pytest-benchmark would fail on half a row, and file none
        raise
    finally:
        gc.enable()
    if benchmark.stats is None:  # --benchmark-disable: each ran once, nothing was timed
        return Rounds()
    rounds.seconds[OURS] = list(benchmark.stats.stats.data)
    return rounds


@dataclass(frozen=True)
class DeviceRounds:
    """Seconds of GPU time per call, round by round: L2 flushed before each call, and not."""

    cold: Rounds
    warm: Rounds


def device_rounds(contestants: dict[str, Step], rounds: int = 5) -> DeviceRounds:
    """GPU time by events, interleaved."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")
    cold, warm = (Rounds({name: [] for name in contestants}) for _ in range(2))
    for _ in range(rounds):
        for name, step in contestants.items():
            once = per_call(step, 1, clock_of("cuda"))
            calls = max(3, min(20, int(0.02 / once)))
            cold.seconds[name].append(_event_seconds(step, calls, flush))
            warm.seconds[name].append(_event_seconds(step, calls, None))
    return DeviceRounds(cold, warm)


def _event_seconds(step: Step, calls: int, flush: torch.Tensor | None) -> float:
    """GPU seconds per call: the median with a flush before each call, else the mean in a row."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    host_seconds = time.perf_counter() - start  # the host's part alone
    torch.cuda.synchronize()

    def event() -> torch.cuda.Event:
        marked = torch.cuda.Event(enable_timing=True)
        marked.record()
        return marked

    # The device sleeps (2e9 cycles are at least a second) until the host has queued everything;
    # else events would time the host. Beyond 1,024 queued launches they do so all the same.
    torch.cuda._sleep(int(2e9 * min(0.2, 1.5 * host_seconds * calls)))
    if flush is None:
        first = event()
        for _ in range(calls):
            step()
        last = event()
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / calls
    marks = []
    for _ in range(calls):
        flush.zero_()
        first = event()
        step()
        marks.append((first, event()))
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(last) for first, last in marks) / 1e3


def copy_step(moved_bytes: int, device: str) -> Step:
    """A copy that reads and writes `moved_bytes` in all, between buffers allocated beforehand."""
    source = torch.ones(moved_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


SIDE = 256  # cuBLAS takes six times as long for a side of 5161 as for one of 5120


@dataclass(frozen=True)
class Product:
    """A square matrix product, and its operations: the ceiling of what computes by products."""

    step: Step
    flops: int


def matrix_product(flops: int, dtype: str, device: str) -> Product:
    """About as many operations; on a CPU by the fastest of torch's ways, which depends on it."""
    side = SIDE * max(1, round((flops / 2) ** (1 / 3) / SIDE))
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    ways: list[Step] = [lambda: torch.mm(a, b, out=out)]
    if device == "cpu":
        ways.append(lambda: F.linear(a, b))
        onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch compiles to
        if onednn is not None and dtype == "float32" and torch.backends.mkldnn.is_available():
            ways.append(lambda: onednn(a, b, None, "none", [], ""))
    return Product(fastest(ways, device), 2 * side**3)


def fastest(ways: Sequence[Step], device: str) -> Step:
    """By a few calls of each; of one, that one."""
    if len(ways) == 1:
        return ways[0]
    clock = clock_of(device)
    return min(ways, key=lambda step: min(per_call(step, 1, clock) for _ in range(4)))
