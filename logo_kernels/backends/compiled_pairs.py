"""The learned affinity's pair stage by compiled launchers: what CPU and CUDA give them alike."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .arguments import DTYPES
from .buffers import wide_empty
from .pairs import PairStage


def addresses(arrays: dict[str, Tensor]) -> dict[str, int]:
    """What a launcher takes for them."""
    return {name: array.data_ptr() for name, array in arrays.items()}


class CompiledPairStage(PairStage):
    """The arrays by the names that csrc/include/logo/pair_problem.h gives them."""

    @abstractmethod
    def _launch(
        self,
        name: str,
        like: Tensor,
        sizes: tuple[int, ...],
        summing: bool,
        arrays: dict[str, Tensor],
    ) -> None:
        """Calls the launcher `name` where `like` lives; summing: with room for sums of blocks."""

    def _hidden(
        self, name: str, a: Tensor, c: Tensor, roll: int, summing: bool = False, **arrays: Tensor
    ) -> None:
        images, crops, width = a.shape
        sizes = images, crops, width, roll % images, DTYPES[a.dtype]
        self._launch(name, a, sizes, summing, {"a": a, "c": c, **arrays})

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
        sizes = rows // pairs, pairs, width, link, DTYPES[y.dtype]
        self._launch(name, y, sizes, summing, {"y": y, **arrays})

    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        moments = wide_empty(a, 2, a.shape[2])
        self._hidden("pair_hidden_moments", a, c, roll, summing=True, moments=moments)
        return moments

    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        images, crops, width = a.shape
        x = a.new_empty(images * crops * (crops - 1), width)
        self._hidden("pair_hidden", a, c, roll, norm=norm, x=x)
        return x

    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_a, to_c = wide_empty(a, *a.shape), wide_empty(a, *a.shape)
        sums = wide_empty(a, 2, a.shape[2])
        self._hidden(
            "pair_hidden_sums", a, c, roll, summing=True,
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
            "pair_hidden_backward", a, c, roll,
            norm=norm, correction=correction, to_a=to_a, to_c=to_c, grad_a=grad_a, grad_c=grad_c,
        )  # fmt: skip
        return grad_a, grad_c

    def output_moments(self, y: Tensor) -> Tensor:
        moments = wide_empty(y, 2, y.shape[1])
        self._output("pair_output_moments", y, 1, summing=True, moments=moments)
        return moments

    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        value, slope = wide_empty(y, y.shape[0] // pairs), wide_empty(y, y.shape[0])
        self._output(
            "pair_output", y, pairs, link,
            norm=norm, weight=weight, bias=bias, value=value, slope=slope,
        )  # fmt: skip
        return value, slope

    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        sums = wide_empty(y, 2, y.shape[1])
        self._output(
            "pair_output_sums", y, pairs, summing=True,
            norm=norm, slope=slope, grad=grad, sums=sums,
        )  # fmt: skip
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
            "pair_output_backward", y, pairs,
            norm=norm, weight=weight, slope=slope, grad=grad, correction=correction, grad_y=grad_y,
        )  # fmt: skip
        return grad_y
