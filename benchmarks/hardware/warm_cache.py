"""Compiles the peers of every GPU case, and ours by Triton, in parallel, into caches on disk.

    PYTHONPATH=benchmarks python -m hardware.warm_cache

One after the other they would take longer than all measurements together.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

PROCESSES = 6  # each with its own CUDA context and the tensors of one case

# Those whose cases are contests, in which peers are compiled.
MODULES = tuple(
    sorted(
        path.stem
        for path in Path(__file__).parents[1].glob("bench_*.py")
        if "\ndef contest(" in path.read_text()
    )
)


def jobs(device: str) -> Iterator[tuple[str, Any]]:
    """(module, case): the first case of every operation first, as they will be measured."""
    columns = [[(name, case) for case in import_module(name).CASES[device]] for name in MODULES]
    for row in zip_longest(*columns):
        yield from (job for job in row if job is not None)


def warm(job: tuple[str, Any], device: str = "cuda") -> str:
    """One step of whatever is compiled; errors are for the benchmark itself to report."""
    name, case = job
    contest = import_module(name).contest(case, device)
    functions = list(contest.ours.values())
    functions += [peer.function for peer in contest.peers if "compiled" in peer.name]
    failed = 0
    for function in functions:
        try:
            contest.inputs.step(function, contest.upstream)
        except Exception:
            failed += 1
    return f"{case.id}: {len(functions)} compiled, {failed} failed"


if __name__ == "__main__":
    processes = min(PROCESSES, os.cpu_count() or 1)
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        for done in pool.map(warm, jobs("cuda")):
            print(done, flush=True)
