"""A backend: its name, its reasons for refusing, and the operations that it serves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The facts of a call by which a backend is chosen: operation, device, dtypes of what is read, rows
# of one image that are read (0 where their number binds no kernel), numbers per row.
Key = tuple[str, torch.device, tuple[torch.dtype, ...], int, int]


class Request(NamedTuple):
    """The facts of a call, by which a backend says whether it serves it."""

    operation: str  # as preference.py names them
    device: str  # torch.device.type
    dtypes: frozenset[torch.dtype]
    crops: int  # rows of one image that are read: crops, targets and features, V + W, or 0
    dim: int
    device_index: int = 0  # among those of its type


class Backend(ABC):
    """One implementation of the operations.

    An operation is a method of its operator's name, (call, result) -> None, which fills the result;
    the records, with shapes and formulas, stand beside the operator: cosine.py, similarity.py,
    contrast.py, affinity/{units, pairs}.py. Arguments are validated, tensors lie on one device, and
    results are allocated; absent tensors are None.
    """

    name: str
    fuses_affinity: bool = True  # False: `LocalAffinity` runs its plain form

    @abstractmethod
    def missing(self) -> str | None:
        """Why this backend cannot work on this machine and what to do about it, or None."""

    @abstractmethod
    def refuses(self, request: Request) -> str | None:
        """Why this backend cannot serve `request`, or None."""

    def scale_(
        self,
        gradients: Sequence[Tensor],  # one to three [B, V_i, D], each of its dtype; written
        upstream: Tensor,  # [] or [B]
        row_scales: Sequence[Tensor | None],  # of each gradient [B, V_i] fp32, any strides
    ) -> None:
        """Gradients, of unit stride over D, times upstream and their rows' scales, in place.

        Products in fp32 before they are rounded, so that fp16 reaches inf where it must. On a GPU
        one launch for all of them.
        """
        for gradient, row_scale in zip(gradients, row_scales, strict=True):
            gradient.mul_(scale_factor(upstream, row_scale))


def scale_factor(upstream: Tensor, row_scale: Tensor | None) -> Tensor:
    """What a gradient [B, V, D] is multiplied by: [], [B, 1, 1] or [B, V, 1]."""
    if row_scale is not None:
        return row_scale.unsqueeze(-1) * upstream.view(-1, 1, 1)
    return upstream if upstream.ndim == 0 else upstream.view(-1, 1, 1)
