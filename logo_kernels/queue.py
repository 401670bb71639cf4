"""The queue of negatives of momentum contrast."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import checks
from .autograd import reverse_mode_only
from .units import UnitRows


class NegativeQueue(nn.Module):
    """Keys of earlier batches, first in, first out: the negatives of MoCo-LoGo.

    ``keys`` [size, dim] are unit vectors, random ones at first; they and the place of the next
    write are buffers, so that a checkpoint of the model holds the queue and resuming goes on with
    it. The keys of a step are enqueued after its loss, so they are never among their own negatives:

        loss = logo_loss(q_global, q_local, k, similarity="info_nce", negatives=queue.keys)
        loss.backward()
        queue.enqueue(k)

    `enqueue` writes in place, without a copy of the queue: the loss keeps no negatives for its
    backward pass, so the order of `backward` and `enqueue` does not matter.

    Args:
        dim: D, numbers of a key.
        size: K, keys that the queue holds.
        device, dtype: of the keys; bfloat16 halves what each step reads.

    Raises:
        ValueError, TypeError: a size that is no positive integer, or a dtype that does not float.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(
        self,
        dim: int,
        size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("size", size)):
            checks.positive_integer(name, value)
        if dtype not in checks.FLOATING:
            raise TypeError(f"dtype must be a floating dtype, got {dtype}")
        keys = UnitRows(torch.randn(size, dim, device=device), torch.float32).unit
        self.register_buffer("keys", keys.to(dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys by these, normalised: [B, D], or [B, P, D] taken row by row.

        Any number of keys: writing goes on at the front when it reaches the end, and of more keys
        than the queue holds the newest stay. No value is looked at by the host.

        Raises:
            TypeError, ValueError: no floating tensor of rank 2 or 3 with D = dim.
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
        places = torch.arange(count - len(kept), count, device=self.keys.device)
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
