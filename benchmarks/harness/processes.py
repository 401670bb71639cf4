"""A step of the loss by one process and by two, which share the images; in turns, in one run.

Both see the same negatives: the one process has all images, each of the two has half and gathers
the targets of the other. So two are at best twice as fast. One thread for each process.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from logo_kernels import logo_loss, ranks

RANKS = 2
CASES = {  # (B of all ranks, G, L, D): why
    (2048, 2, 2, 128): "the README's batch",
    (256, 2, 8, 2048): "long rows, few images",
    (64, 2, 2, 128): "so small that processes meet more than they work",
}
ROUNDS, SLICE = 15, 0.2  # seconds of each contestant in a round, about


def measured() -> list[dict[str, Any]]:
    """A row for each case: medians of seconds, ratios and shares within rounds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results, sender = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    torch.multiprocessing.spawn(_rank, (port, sender), nprocs=RANKS)
    rows: list[dict[str, Any]] = results.recv()
    return rows


def _rank(rank: int, port: int, sender: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    rows = [_row(rank, case) for case in CASES]
    if rank == 0:
        sender.send(rows)
    dist.barrier()
    dist.destroy_process_group()


def _row(rank: int, case: tuple[int, int, int, int]) -> dict[str, Any]:
    images, globals_, locals_, dim = case
    generator = torch.Generator().manual_seed(0)
    blocks = [
        torch.randn(images, crops, dim, generator=generator)
        for crops in (globals_, locals_, globals_)
    ]
    share = images // RANKS
    mine = [block[rank * share : (rank + 1) * share].clone() for block in blocks]
    world, spent = dist.group.WORLD, Spent()

    def alone() -> None:
        if rank == 0:
            step(blocks, None)

    calls = [_calls(alone), _calls(lambda: step(mine, world))]
    one, two, gathering = [], [], []
    for _ in range(ROUNDS):
        one.append(_seconds(alone, calls[0]))
        with spent:
            two.append(_seconds(lambda: step(mine, world), calls[1]))
        gathering.append(spent.seconds / calls[1] / two[-1])
    return {
        "case": case,
        "one": statistics.median(one),
        "two": statistics.median(two),
        "ratio": statistics.median(a / b for a, b in zip(one, two, strict=True)),
        "share": statistics.median(gathering),
    }


def step(blocks: list[Tensor], group: Any) -> None:
    x, y, t = blocks
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    logo_loss(x, y, t, similarity="info_nce", negatives="batch", group=group).backward()


class Spent:
    """Seconds in collectives, waiting for the other rank included."""

    def __enter__(self) -> Spent:
        self.seconds, self.gather = 0.0, ranks._gather
        ranks._gather = self.timed
        return self

    def __exit__(self, *_: object) -> None:
        ranks._gather = self.gather

    def timed(self, *arguments: Any) -> Tensor:
        start = time.perf_counter()
        made = self.gather(*arguments)
        self.seconds += time.perf_counter() - start
        return made


def _calls(step: Callable[[], None]) -> int:
    """As many as take a slice, the same on both ranks."""
    step()
    longest = torch.tensor(_seconds(step, 3))
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    return max(1, round(SLICE / float(longest)))


def _seconds(step: Callable[[], None], calls: int) -> float:
    """Per call, from when both ranks begin until both are done."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(calls):
        step()
    dist.barrier()
    return (time.perf_counter() - start) / calls
