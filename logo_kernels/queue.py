"""The queue of negatives of momentum contrast."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, ranks
from .autograd import reverse_mode_only
from .units import UnitRows


class NegativeQueue(ranks.HoldsGroup):
    """Keys of earlier batches, first in, first out: the negatives of MoCo-LoGo.

    ``keys`` [size, dim] are unit vectors, random ones at first; they and the place of the next
    write are buffers, so that a checkpoint of the model holds the queue and resuming goes on with
    it. The keys of a step are enqueued after its loss, so they are never among their own negatives:

        loss = logo_loss(q_global, q_local, k, similarity="info_nce", negatives=queue.keys)
        loss.backward()
        queue.enqueue(k)

    `enqueue` writes in place, without a copy of the queue: the loss keeps no negatives for its
    backward pass, so the order of `backward` and `enqueue` does not matter.

    **Several processes**: without ``group`` each has a queue of its own, whatever torch.distributed
    was told. With one, all its ranks hold the same keys: at first those of rank 0, then every
    rank's, so that constructor and `enqueue` must run on all of them. Keep the queue out of a
    module that DistributedDataParallel wraps: its ``broadcast_buffers`` sends rank 0's keys to all
    at every forward pass, which puts them in the place of the others', or, with a group, sends what
    is there already.

    Args:
        dim: D, numbers of a key.
        size: K, keys that the queue holds.
        group: a ProcessGroup, or a DeviceMesh of one dimension, whose ranks fill one queue;
            ``torch.distributed.group.WORLD`` is None before ``init_process_group``. None: this
            process alone.
        device: of the keys.
        dtype: of the keys; bfloat16 halves what each step reads.

    Attributes:
        keys: [size, dim], k̂ = k/‖k‖ of the keys enqueued; a buffer.
        pointer: [], int64, the row that is written next; a buffer.

    Raises:
        ValueError: a size that is not positive.
        TypeError: a size that is no integer, a dtype that does not float, or a group that is none.

    Examples:
        >>> queue = NegativeQueue(dim=2, size=4)
        >>> queue.enqueue(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        >>> queue.keys[:2].round(decimals=4)
        tensor([[1., 0.],
                [0., 1.]])
        >>> sorted(queue.state_dict())
        ['keys', 'pointer']
    """

    keys: Tensor
    pointer: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        group: ranks.Group = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("size", size)):
            checks.positive_integer(name, value)
        if dtype not in checks.FLOATING:
            raise TypeError(f"dtype must be a floating dtype, got {dtype}")
        over = ranks.process_group(group)
        self.group = group
        if over is None:
            random = torch.randn(size, dim, device=device)
        else:  # on the CPU, since GPUs of different kinds draw different numbers from one seed
            seed = ranks.of_first(int(torch.randint(2**62, ())), over)
            generator = torch.Generator("cpu").manual_seed(seed)
            random = torch.randn(size, dim, device="cpu", generator=generator).to(device)
        keys = UnitRows(random, torch.float32).unit
        self.register_buffer("keys", keys.to(dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys by these, normalised: [B, D], or [B, P, D] taken row by row.

        Any number of keys: writing goes on at the front when it reaches the end, and of more keys
        than the queue holds the newest stay. Of a group's ranks each brings as many as it has, also
        none, and they are written in the order of the ranks. No value is looked at by the host, but
        for how many keys the ranks of a group bring.

        Args:
            keys: [B, D] or [B, P, D], any floating dtype; constants.

        Raises:
            TypeError: no floating tensor.
            ValueError: a rank other than 2 or 3, or D that is not ``dim``.

        Examples:
            >>> queue = NegativeQueue(dim=1, size=2)
            >>> queue.enqueue(torch.tensor([[1.0], [2.0], [-3.0]]))  # more than it holds
            >>> queue.keys.flatten().round(decimals=4).tolist(), queue.pointer.item()
            ([-1.0, 1.0], 1)
        """
        size, dim = self.keys.shape
        if not isinstance(keys, Tensor) or keys.dtype not in checks.FLOATING:
            got = keys.dtype if isinstance(keys, Tensor) else type(keys).__name__
            raise TypeError(f"keys must be a floating tensor [B, D] or [B, P, D], got {got}")
        if keys.ndim not in (2, 3) or keys.shape[-1] != dim:
            raise ValueError(
                f"keys must be [B, {dim}] or [B, P, {dim}], got shape {list(keys.shape)}"
            )
        reverse_mode_only("NegativeQueue.enqueue")
        self._leave_inference_mode()
        rows = keys.detach().reshape(-1, dim)
        count = len(rows)
        kept = rows[-size:] if count > size else rows
        wide = torch.float64 if kept.dtype == torch.float64 else torch.float32
        units = UnitRows(kept, wide).unit.to(self.keys)
        over = ranks.process_group(self.group)
        if over is not None:
            units, count = ranks.in_rank_order(units, count, over)
            units = units[-size:]
        places = torch.arange(count - len(units), count, device=self.keys.device)
        self.keys.index_copy_(0, (self.pointer + places) % size, units)
        self.pointer.copy_((self.pointer + count) % size)

    def _leave_inference_mode(self) -> None:
        """Keys made under torch.inference_mode cannot be written outside: copies can."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return
        if self.keys.is_inference():
            self.keys, self.pointer = self.keys.clone(), self.pointer.clone()

    def extra_repr(self) -> str:
        size, dim = self.keys.shape
        return f"dim={dim}, size={size}, dtype={self.keys.dtype}"
