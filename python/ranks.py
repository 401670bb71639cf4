"""The processes that train together: those that torchrun started, or this one alone.

Each is a rank, with its own part of every batch and its own crops. Gradients are averaged
(DistributedDataParallel), weights are the same everywhere. The writer, rank 0, does once what is
done once: it evaluates, writes all files, and prints.

A rank that ends, killed or by an error, closes its connections: the others notice in what they send
next, or, if it hangs, after TIMEOUT. One of all says why.
"""

import atexit
import contextlib
import inspect
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from errors import UserError, reason

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
# For what every rank does at the same time. A first step may compile something.
TIMEOUT = timedelta(seconds=float(os.environ.get("LOGO_TIMEOUT", 120)))
# For what the writer does alone, such as the evaluation of an epoch.
PATIENCE = timedelta(hours=6)
T = TypeVar("T")


class Ranks:
    """This process and the others. Without others every method gives back what it got."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> str:
        """A GPU of its own for each rank of a machine."""
        local = int(os.environ.get("LOCAL_RANK", self.rank))
        if self.count == 1 or not name.startswith("cuda"):
            return name
        if name != "cuda":
            raise UserError(f"--device: got {name} for {self.count} processes; want cuda")
        if local >= torch.cuda.device_count():
            raise UserError(
                f"--device cuda: {torch.cuda.device_count()} GPUs for process {local + 1} of this "
                "machine; want one for each: torchrun --nproc-per-node"
            )
        torch.cuda.set_device(local)
        return f"cuda:{local}"

    def part(self, batch: Tensor) -> Tensor:
        """Of a batch that all share, what is this rank's."""
        return batch.chunk(self.count)[self.rank]

    def seed(self, *seed: int) -> None:
        """Random numbers of its own for each rank; those of the first are of the seed itself."""
        if self.is_writer and len(seed) == 1:
            torch.manual_seed(*seed)
            return
        # Torch's CPU generator takes 32 bits, so sums and shifts of seeds would soon meet.
        mixed = int(np.random.SeedSequence([*seed, self.rank]).generate_state(1)[0])
        random.seed(mixed)
        np.random.seed(mixed)
        torch.manual_seed(mixed)

    def averaging(self, module: nn.Module, spare: bool = False) -> nn.Module:
        """The module with a forward whose gradients are averaged over the ranks.

        spare: it may have parameters that no forward uses.

        Its buffers stay each rank's own: a forward that sent the writer's to all would overwrite
        MoCo's queue, and running statistics move no weight.
        """
        if self.count == 1:
            return module
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        with in_contact():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)
            parallel = DistributedDataParallel(
                module, find_unused_parameters=spare, **{sync: False}
            )
        if self.rounds_by_place(next(module.parameters())):
            parallel.register_comm_hook(self.count, _average_in_order)
        return parallel

    def rounds_by_place(self, tensor: Tensor) -> bool:
        """Whether the last digits of a sum over ranks depend on its place among others. Gloo begins
        to add at another rank for each part of what is sent, which two ranks do not notice. DDP
        moves gradients to other places after its first step, and a resumed run has a first step of
        its own.
        """
        return self.count > 2 and tensor.device.type == "cpu"

    def mean_gradients(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """For those that did not pass through a backward of `averaging`; None stays None."""
        if self.count == 1:
            return list(gradients)
        there = [g for g in gradients if g is not None]
        flat = torch.cat([g.reshape(-1) for g in there])
        dist.all_reduce(flat)
        means = iter((flat / self.count).split([g.numel() for g in there]))
        return [None if g is None else next(means).view_as(g) for g in gradients]

    def mean(self, values: Sequence[float]) -> list[float]:
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with in_contact():
            dist.all_reduce(total)
        return (total / self.count).tolist()

    def rows(self, part: Tensor) -> Tensor:
        """Those of all ranks, [N, D] of each -> [N * count, D]."""
        if self.count == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.count)]
        with in_contact():
            dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def any(self, flag: bool) -> bool:
        """Whether it is so on one of them. By the CPU, so that no GPU is waited for."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        with in_contact():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        return bool(flags)

    def from_writer(self, make: Callable[[], T]) -> T:
        """What make() gives on the writer, which alone calls it, however long it takes."""
        if self.count == 1:
            return make()
        box = [make() if self.is_writer else None]
        with in_contact():
            dist.broadcast_object_list(box, src=0, group=self.patient, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def on_writer(self, value: T) -> list[T]:
        """The values of all ranks; elsewhere an empty list."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count if self.is_writer else []
        with in_contact():
            dist.gather_object(value, values or None, dst=0, group=self.patient)
        return values


class Launched(Ranks):
    """A rank of those that torchrun started."""

    def __init__(self) -> None:
        rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        super().__init__(rank, count)
        try:
            store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("run", store),
                rank=rank,
                world_size=count,
                timeout=TIMEOUT,
            )
            # Without it threads of gloo outlive their group, which aborts the program.
            atexit.register(dist.destroy_process_group)
            self.patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        except Exception as error:
            raise UserError(
                f"process {rank} of {count}: the others did not come within "
                f"{TIMEOUT.total_seconds():.0f} s ({reason(error)})"
            ) from error
        self.end = dist.PrefixStore("end", store)

    def speaks(self) -> bool:
        """Whether no other has come to an end by an error before."""
        try:
            return self.end.add("voices", 1) == 1
        except RuntimeError:  # the store went with the process that had it
            return True

    def has_spoken(self, status: int) -> None:
        with contextlib.suppress(RuntimeError):
            self.end.set("status", str(status))

    def status_of_speaker(self) -> int:
        """Once it has spoken: torchrun ends all processes as soon as one has failed."""
        with contextlib.suppress(RuntimeError):
            self.end.wait(["status"], timedelta(seconds=10))
            return int(self.end.get("status"))
        return 1


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks of this run. Of what ends it, one speaks; the others end with the same status."""
    if not all(name in os.environ for name in LAUNCHED):
        yield Ranks()
        return
    ranks = Launched()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # torchrun's, if another has failed
    try:
        if not ranks.is_writer:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        yield ranks
        ranks.from_writer(lambda: None)  # No rank leaves while the writer is at work.
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # It ends anyway, but says why before.
        if not ranks.speaks():
            raise SystemExit(ranks.status_of_speaker()) from None
        atexit.register(ranks.has_spoken, status_of(error))
        raise


def status_of(error: BaseException) -> int:
    """What the program ends with."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


@contextlib.contextmanager
def in_contact() -> Iterator[None]:
    """What is sent between ranks: a lost one is said in words."""
    try:
        yield
    except RuntimeError as error:
        if not lost(error):
            raise
        raise UserError(
            f"process {os.environ.get('RANK')} lost another, which was killed, failed, or did not "
            f"answer for {TIMEOUT.total_seconds():.0f} s ({reason(error)}). Repeat the command "
            "with --resume to go on from the last checkpoint."
        ) from error


def lost(error: RuntimeError) -> bool:
    """Gloo's errors are RuntimeErrors that name its files."""
    return isinstance(error, dist.DistError) or "gloo/" in str(error) or "NCCL" in str(error)


def _average_in_order(count: int, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's average, added up in the order of the ranks."""
    flat = bucket.buffer()
    parts = [torch.empty_like(flat) for _ in range(count)]

    def average(_: torch.futures.Future) -> Tensor:
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total / count

    return dist.all_gather(parts, flat, async_op=True).get_future().then(average)
