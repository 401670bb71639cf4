"""One case from gate to figures: ours against its peers and against a copy of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hardware import ledger

from . import forms, simd
from .case import Case, Inputs
from .forms import Function, Prepared
from .gate import Expected
from .memory import peak_bytes
from .package import AUTO, serving
from .timing import OURS, Product, Rounds, Step, clock_of, copy_step, device_rounds, take_turns

COPY, PRODUCT = "copy", "matrix product"
WARM_UP = 3  # compilation, then the recording of a CUDA graph, then its first replay
KERNELS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # the backends with kernels for a device


@dataclass(frozen=True)
class Own:
    """One of ours: the function, and the backend behind it."""

    function: Function
    backend: str

    def __call__(self, *blocks: Tensor) -> Tensor:
        return self.function(*blocks)


@dataclass
class Contest:
    """Who computes what, on which inputs; every bench_*.py makes one of a case and a device."""

    inputs: Inputs
    ours: Mapping[str, Own]  # by contestant: the first is `OURS`
    reference: Function
    peers: list[Prepared]
    upstream: Tensor | None = None
    baselines: Mapping[str, Step] = field(default_factory=dict)
    product: Product | None = None
    gradient_tolerance: float | None = None  # None: as of results


def named(function: Function) -> Callable[[str], Function]:
    """Backend -> `function` by it, as a plain function: what every torch.compile takes."""

    def by(backend: str) -> Function:
        def call(*blocks: Tensor) -> Tensor:
            return function(*blocks, backend=backend)

        return call

    return by


def by_backend(
    function_of: Callable[[str], Function], operation: str, device: str, tensors: Sequence[Tensor]
) -> dict[str, Function]:
    """Backend -> function: first auto's choice, then every other that has kernels and serves."""
    chosen = serving(operation, *tensors)
    found = {chosen: function_of(AUTO)}
    for name in KERNELS[device]:
        if name == chosen:
            continue
        try:
            serving(operation, *tensors, backend=name)
        except RuntimeError:
            continue  # it is not there, or refuses
        found[name] = function_of(name)
    return found


def of_ours(functions: Mapping[str, Function], device: str, moved_bytes: int) -> dict[str, Own]:
    """Contestant -> ours, of `by_backend`'s: auto's choice in every form, the others eagerly."""
    chosen, *others = functions
    ours = {
        form.name: Own(form.function, chosen)
        for form in forms.in_every_form(OURS, functions[chosen], device, moved_bytes)
    }
    return ours | {f"{OURS}, {name}": Own(functions[name], name) for name in others}


def contest_of(
    case: Case,
    device: str,
    inputs: Inputs,
    function_of: Callable[[str], Function],  # ours by the name of a backend
    peers: Mapping[str, Function],
    *,
    missing: Mapping[str, str] | None = None,  # peers that cannot run -> why
    resolved_by: Sequence[Tensor] | None = None,  # what ours chooses a backend by; None: all
    **others: Any,
) -> Contest:
    """Ours and the peers in every form, on these inputs."""
    leaves, constants = inputs.blocks()
    tensors = [*leaves, *constants] if resolved_by is None else resolved_by
    functions = by_backend(function_of, case.operation, device, tensors)
    return Contest(
        inputs,
        ours=of_ours(functions, device, case.moved_bytes()),
        reference=function_of("reference"),
        peers=forms.prepare(peers, device, case.moved_bytes(), missing),
        **others,
    )


def compare(benchmark: Any, case: Case, device: str, contest: Contest) -> Rounds:
    """Checks everyone against the reference in float64, then times them in turns.

    A wrong result of ours, in any form, fails the benchmark before it is timed, and so does an
    exception of its eager form. A compiled form that fails, and a peer that fails or is wrong, is
    left out, and the report names it with its reason.
    """
    inputs, upstream = contest.inputs, contest.upstream
    expected = Expected(inputs, contest.reference, upstream, contest.gradient_tolerance)
    contestants: dict[str, Step] = {}
    excluded = {}

    def step_of(function: Function) -> Step:
        return lambda: inputs.step(function, upstream)

    for name, own in contest.ours.items():
        step = step_of(own.function)
        if forms.split(name)[1] != forms.EAGER and (reason := failure(step)) is not None:
            excluded[name] = reason
            continue
        wrong = expected.difference(inputs, own.function, upstream)
        assert wrong is None, f"{case.id}: {name}: {wrong}; a wrong result is not timed"
        contestants[name] = step
    names_of_ours = list(contestants)
    for peer in contest.peers:
        step = step_of(peer.function)
        reason = peer.missing or failure(step)
        reason = reason or expected.difference(inputs, peer.function, upstream)
        if reason is None:
            contestants[peer.name] = step
        else:
            excluded[peer.name] = reason
    del expected
    peers = [name for name in contestants if name not in names_of_ours]
    contestants |= contest.baselines
    if contest.product is not None:
        contestants[PRODUCT] = contest.product.step
    contestants[COPY] = copy_step(case.moved_bytes(), device)
    for step in contestants.values():
        step()

    info = benchmark.extra_info
    info |= facts_of(case, device, contest.ours[OURS].backend)
    info["kernels"] = kernels_behind(case.operation, contest.ours, inputs)
    info |= {"moved_bytes": case.moved_bytes(), "flops": case.flops(), "excluded": excluded}
    if contest.product is not None:
        info["product_flops"] = contest.product.flops
    rounds = take_turns(benchmark, contestants, clock_of(device))
    if not rounds.seconds:
        return rounds
    chosen = [name for name in names_of_ours if forms.split(name)[0] == OURS]
    best = rounds.best(chosen) or OURS
    figures: dict[str, dict[str, Any]] = {}
    for name, step in contestants.items():
        figures[name] = rounds.summary(name) | {"ratio": rounds.ratio(name, best)}
        for leaf in inputs.leaves:
            leaf.grad = None
        figures[name]["peak_bytes"] = peak_bytes(step, device)
    info["contestants"] = figures
    wall = headline(rounds, chosen, peers)
    info |= {f"best_{key}": value for key, value in wall.items()}
    seconds, of_copy = figures[best]["median"], figures[COPY]["ratio"]["median"]
    if device == "cuda":
        gpu = device_rounds(contestants)
        info["gpu"] = headline(gpu.cold, chosen, peers)
        best = info["gpu"]["ours"]
        for name, of_contestant in figures.items():
            of_contestant["device_seconds"] = {
                "cold": gpu.cold.summary(name)["median"], "warm": gpu.warm.summary(name)["median"]
            }  # fmt: skip
            of_contestant["gpu_ratio"] = gpu.cold.ratio(name, best)
        seconds = figures[best]["device_seconds"]["cold"]
        of_copy = figures[COPY]["gpu_ratio"]["median"]
    # On a GPU, bandwidth is of GPU time with a flushed L2.
    info |= {"bytes_per_second": case.moved_bytes() / seconds, "fraction_of_copy": of_copy}
    return rounds


def facts_of(case: Case, device: str, backend: str) -> dict[str, Any]:
    """What a row says of its case, before anything is timed."""
    return {
        "operation": case.operation, "case": case.id, "size": case.size, "dtype": case.dtype,
        "view_major": case.view_major, "features": case.features, "why": case.why,
        "device": device, "simd": simd.current() if device == "cpu" else None,
        "backend": backend, "excluded": {},
    }  # fmt: skip


def failure(step: Step) -> str | None:
    """What a contestant raises while it warms up, by its type and the first line of its message.

    A compiler has many ways to fail.
    """
    try:
        for _ in range(WARM_UP):
            step()
    except Exception as error:
        lines = str(error).strip().splitlines()
        return ": ".join([type(error).__name__, *(line[:200] for line in lines[:1])])
    return None


def kernels_behind(operation: str, ours: Mapping[str, Own], inputs: Inputs) -> dict[str, list[str]]:
    """Contestant of ours -> the kernels that a step launches, by their source files.

    Its compiled forms launch the same.
    """
    scaled_by = serving("scale", inputs.blocks()[0][0])  # backward scales by auto's choice
    return {
        name: ledger.kernels_of(operation, own.backend, scaled_by=scaled_by)
        for name, own in ours.items()
        if forms.split(name)[1] == forms.EAGER
    }


def headline(rounds: Rounds, ours: list[str], peers: list[str]) -> dict[str, Any]:
    """The best form of ours, the best peer in its best form, and how much longer that takes."""
    best, peer = rounds.best(ours), rounds.best(peers)
    ratio = None if peer is None or best is None else rounds.ratio(peer, best)["median"]
    return {"ours": best, "peer": peer, "ratio": ratio}
