"""The learned affinity's pair stage on NVIDIA GPUs: csrc/cuda/pair_hidden.cu and pair_output.cu."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from .arguments import DTYPES
from .devices import Workspaces, current_stream, on_device_of
from .pairs import PairStage


def _fp32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


class CudaPairStage(PairStage):
    """`library` gives the compiled launchers."""

    def __init__(self, library: Callable[[], ModuleType]) -> None:
        self._library = library
        self._workspaces: Workspaces[Tensor] = Workspaces()

    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        moments = _fp32(a, 2, a.shape[2])
        self._hidden("moments", a, c, roll, summing=True, moments=moments)
        return moments

    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        images, crops, width = a.shape
        x = a.new_empty(images * crops * (crops - 1), width)
        self._hidden("", a, c, roll, norm=norm, x=x)
        return x

    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_a, to_c, sums = _fp32(a, *a.shape), _fp32(a, *a.shape), _fp32(a, 2, a.shape[2])
        self._hidden(
            "sums", a, c, roll, summing=True,
            norm=norm, grad_x=grad, to_a=to_a, to_c=to_c, sums=sums,
        )  # fmt: skip
        return to_a, to_c, sums

    def hidden_backward(
        self,
        to_a: Tensor,
        to_c: Tensor,
        a: Tensor,
        c: Tensor,
        norm: Tensor,
        correction: Tensor,
        roll: int,
    ) -> tuple[Tensor, Tensor]:
        grad_a, grad_c = torch.empty_like(a), torch.empty_like(c)
        self._hidden(
            "backward", a, c, roll,
            norm=norm, correction=correction, to_a=to_a, to_c=to_c, grad_a=grad_a, grad_c=grad_c,
        )  # fmt: skip
        return grad_a, grad_c

    def output_moments(self, y: Tensor) -> Tensor:
        moments = _fp32(y, 2, y.shape[1])
        self._output("moments", y, 1, summing=True, moments=moments)
        return moments

    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        value, slope = _fp32(y, y.shape[0] // pairs), _fp32(y, y.shape[0])
        self._output(
            "", y, pairs, link, norm=norm, weight=weight, bias=bias, value=value, slope=slope
        )
        return value, slope

    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        sums = _fp32(y, 2, y.shape[1])
        self._output("sums", y, pairs, summing=True, norm=norm, slope=slope, grad=grad, sums=sums)
        return sums

    def output_backward(
        self,
        y: Tensor,
        norm: Tensor,
        weight: Tensor,
        slope: Tensor,
        grad: Tensor,
        correction: Tensor,
        pairs: int,
    ) -> Tensor:
        grad_y = torch.empty_like(y)
        self._output(
            "backward", y, pairs,
            norm=norm, weight=weight, slope=slope, grad=grad, correction=correction, grad_y=grad_y,
        )  # fmt: skip
        return grad_y

    def _hidden(
        self, name: str, a: Tensor, c: Tensor, roll: int, summing: bool = False, **arrays: Tensor
    ) -> None:
        images, crops, width = a.shape
        sizes = images, crops, width, roll % images
        self._launch("hidden", name, a, sizes, summing, {"a": a, "c": c, **arrays})

    def _output(
        self,
        name: str,
        y: Tensor,
        pairs: int,
        link: int = 0,
        summing: bool = False,
        **arrays: Tensor,
    ) -> None:
        rows, width = y.shape
        sizes = rows // pairs, pairs, width, link
        self._launch("output", name, y, sizes, summing, {"y": y, **arrays})

    def _launch(
        self,
        half: str,
        name: str,
        like: Tensor,
        sizes: tuple[int, int, int, int],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        """Of the dtype of `like`, on its device and stream; summing: with a workspace."""
        library = self._library()
        launcher = getattr(library, "_".join(["pair", half, *([name] if name else [])]))
        with on_device_of(like):
            workspace = self._workspace(library, like) if summing else None
            launcher(
                like.device.index or 0, current_stream(like),
                0 if workspace is None else workspace.data_ptr(),
                *sizes, DTYPES[like.dtype],
                **{key: array.data_ptr() for key, array in arrays.items()},
            )  # fmt: skip

    def _workspace(self, library: ModuleType, like: Tensor) -> Tensor:
        """The sums of blocks, which launches on a stream share."""
        needed = library.pair_workspace_bytes(like.device.index or 0, like.shape[-1])
        return self._workspaces.take(
            like,
            lambda kept: kept.numel() >= needed,
            lambda: torch.empty(needed, dtype=torch.uint8, device=like.device),
        )
