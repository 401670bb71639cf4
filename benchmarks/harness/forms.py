"""The forms in which ours and peers alike are measured: eager, compiled, and as a CUDA graph.

Compiled with static shapes, the faster way. The CUDA graph is that of torch.compile's mode
"reduce-overhead", which copies the inputs into the graph's own at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]

# What a contestant's name ends with.
EAGER, COMPILED, GRAPH = "", ", compiled", ", compiled, CUDA graph"
FORMS = {EAGER: "eager", COMPILED: "compiled", GRAPH: "CUDA graph"}

# Beyond this size a GPU is busy for longer than the host needs to launch the step.
CUDA_GRAPH_BYTES = 256 << 20


@dataclass
class Prepared:
    """A contestant ready to be called, or the reason why it is not there."""

    name: str
    function: Function
    missing: str | None = None


def split(name: str) -> tuple[str, str]:
    """A contestant's name without its form, and the form."""
    form = next((form for form in (GRAPH, COMPILED) if name.endswith(form)), EAGER)
    return name.removesuffix(form), form


def in_every_form(name: str, function: Function, device: str, moved_bytes: int) -> list[Prepared]:
    """Each form that could be the best on this device. Nothing is compiled yet."""
    compiled = torch.compile(function, dynamic=False)
    forms = [Prepared(name + EAGER, function), Prepared(name + COMPILED, compiled)]
    if device == "cuda" and moved_bytes <= CUDA_GRAPH_BYTES:
        replayed = torch.compile(function, dynamic=False, mode="reduce-overhead")
        forms.append(Prepared(name + GRAPH, _new_step(replayed)))
    return forms


def prepare(
    functions: Mapping[str, Function],
    device: str,
    moved_bytes: int,
    missing: Mapping[str, str] | None = None,
) -> list[Prepared]:
    """Every peer in every form; those that are `missing`, name -> reason, once."""
    torch.compiler.reset()  # else compiled code of earlier cases adds up to the recompile limit
    prepared = []
    for name, function in functions.items():
        reason = (missing or {}).get(name)
        if reason is None:
            prepared += in_every_form(name, function, device, moved_bytes)
        else:
            prepared.append(Prepared(name, function, reason))
    return prepared


def _new_step(function: Function) -> Function:
    def step(*args: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # earlier outputs may be overwritten
        return function(*args)

    return step
