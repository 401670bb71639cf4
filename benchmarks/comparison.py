"""One case from gate to figures: ours against its peers and against a copy of the same bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

import ledger
from cases import AffinityCase, CosineCase, InfoNCECase, SimilarityCase
from gate import Expected
from inputs import Inputs
from logo_kernels.backends import AUTO, PREFERENCE, resolve
from memory import peak_bytes
from peers import Prepared
from timing import OURS, Step, clock_of, copy_step, device_times, take_turns

COPY = "copy"
WARM_UP = 3  # compilation, then the recording of a CUDA graph, then its first replay


Function = Callable[..., Tensor]


@dataclass
class Contest:
    """Who computes what, on which inputs; every bench_*.py makes one of a case and a device."""

    inputs: Inputs
    ours: Mapping[str, Function]  # by backend: the first is the contestant `OURS`
    reference: Function
    peers: list[Prepared]
    upstream: Tensor | None = None
    baselines: Mapping[str, Step] = field(default_factory=dict)
    gradient_tolerance: float | None = None  # None: as of results


def by_backend(
    function: Function, operation: str, device: str, inputs: Inputs
) -> dict[str, Function]:
    """Backend -> `function` by it: first auto's choice, then every other that has kernels for it.

    The CPU has one backend with kernels, a GPU has two.
    """
    leaves, constants = inputs.blocks()
    chosen = resolve(AUTO, operation, *leaves, *constants).name
    found = {chosen: function}
    for name in PREFERENCE[device]:
        if name in (chosen, "reference"):
            continue
        try:
            resolve(name, operation, *leaves, *constants)
        except RuntimeError:
            continue  # it is not there, or refuses
        found[name] = partial(function, backend=name)
    return found


def compare(
    benchmark: Any,
    case: AffinityCase | CosineCase | InfoNCECase | SimilarityCase,
    device: str,
    contest: Contest,
) -> None:
    """Checks everyone against the reference in float64, then times them in turns.

    The first of ours is the contestant `OURS`, another one "ours, <backend>". A wrong result of
    ours fails the benchmark before it is timed. A peer that fails or is wrong is left out, and the
    report names it with its reason.
    """
    inputs, ours, upstream = contest.inputs, contest.ours, contest.upstream
    expected = Expected(inputs, contest.reference, upstream, contest.gradient_tolerance)
    own = {name_of_ours(backend, ours): backend for backend in ours}
    for name, backend in own.items():
        wrong = expected.difference(inputs, ours[backend], upstream)
        assert wrong is None, f"{case.id}: {name}: {wrong}; a wrong result is not timed"

    def step_of(function: Function) -> Step:
        return lambda: inputs.step(function, upstream)

    contestants = {name: step_of(ours[backend]) for name, backend in own.items()}
    excluded = {}
    for peer in contest.peers:
        step = step_of(peer.function)
        try:
            for _ in range(WARM_UP):
                step()
            wrong = expected.difference(inputs, peer.function, upstream)
        except Exception as error:  # a compiler has many ways to fail; the report names this one
            wrong = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
        if wrong is None:
            contestants[peer.name] = step
        else:
            excluded[peer.name] = wrong
    del expected
    peer_names = [name for name in contestants if name not in own]
    contestants |= contest.baselines
    contestants[COPY] = copy_step(case.moved_bytes(), device)
    for step in contestants.values():
        step()

    info = benchmark.extra_info
    info |= {
        "operation": case.operation, "case": case.id, "size": case.size, "dtype": case.dtype,
        "view_major": case.view_major, "features": getattr(case, "features", False),
        "why": case.why, "device": device, "backend": own[OURS],
        "kernels": kernels_behind(case.operation, own, inputs),
        "moved_bytes": case.moved_bytes(), "flops": case.flops(), "excluded": excluded,
    }  # fmt: skip
    rounds = take_turns(benchmark, contestants, clock_of(device))
    if not rounds.seconds:
        return
    figures: dict[str, dict[str, Any]] = {}
    for name, step in contestants.items():
        figures[name] = rounds.summary(name)
        if name != OURS:
            figures[name]["ratio"] = rounds.ratio(name)
        for leaf in inputs.leaves:
            leaf.grad = None
        figures[name]["peak_bytes"] = peak_bytes(step, device)
    if device == "cuda":
        for name, times in device_times(contestants).items():
            figures[name]["device_seconds"] = dataclasses.asdict(times)
    info["contestants"] = figures
    info |= headline(figures, peer_names, case.moved_bytes())


def name_of_ours(backend: str, ours: Mapping[str, Any]) -> str:
    """What a backend's contestant is called."""
    return OURS if backend == next(iter(ours)) else f"{OURS}, {backend}"


def kernels_behind(operation: str, own: Mapping[str, str], inputs: Inputs) -> dict[str, list[str]]:
    """Contestant of ours -> the kernels that a step of it launches, by their source files."""
    scaled_by = resolve(AUTO, "scale", inputs.blocks()[0][0]).name  # autograd.scale does the same
    return {
        name: ledger.kernels_of(operation, backend, scaled_by=scaled_by)
        for name, backend in own.items()
    }


def headline(
    figures: dict[str, dict[str, Any]], peer_names: list[str], moved_bytes: int
) -> dict[str, Any]:
    """The columns of the report. On a GPU, bandwidth is of GPU time with a flushed L2."""
    best = min(peer_names, key=lambda name: figures[name]["ratio"]["median"], default=None)
    ours, copy = figures[OURS], figures[COPY]
    if "device_seconds" in ours:
        seconds = ours["device_seconds"]["cold"]
        fraction = copy["device_seconds"]["cold"] / seconds
    else:
        seconds = ours["median"]
        fraction = copy["ratio"]["median"]
    return {
        "best_peer": best,
        "best_ratio": None if best is None else figures[best]["ratio"]["median"],
        "bytes_per_second": moved_bytes / seconds,
        "fraction_of_copy": fraction,
    }
