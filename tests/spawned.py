"""Processes of a group that tests begin, and what they leave."""

import datetime
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock


def begin(rank: int, ranks: int, port: int) -> None:
    """First in each process."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    wait = datetime.timedelta(seconds=60)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks, timeout=wait)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def saved(
    rank: Callable[[int, int, int, str], None], ranks: int, factory: pytest.TempPathFactory
) -> list[Any]:
    """What each of the processes `rank(rank, ranks, port, out)` saves as out/{rank}.pt."""

    def begin_all(out: Path) -> None:
        torch.multiprocessing.spawn(rank, (ranks, free_port(), str(out)), nprocs=ranks)

    out = once(f"{rank.__module__}-{ranks}", begin_all, factory)
    return [torch.load(out / f"{rank}.pt") for rank in range(ranks)]


def once(name: str, fill: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """A folder that is filled once for all workers of pytest-xdist, which share the one above their
    own. To be read only.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = Path(shared) / name
    with FileLock(f"{out}.lock"):
        if not out.exists():
            out.mkdir()
            fill(out)
    return out
