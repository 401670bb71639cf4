"""The learned affinity's pair stage on the CPU: csrc/cpu/pair_hidden.cpp and pair_output.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from .arguments import DTYPES
from .buffers import compute_dtype
from .extension import extension
from .pairs import PairStage


def _sizes(a: Tensor, roll: int) -> tuple[int, ...]:
    return *a.shape, roll, DTYPES[a.dtype], torch.get_num_threads()


def _rows(y: Tensor, pairs: int, link: int = 0) -> tuple[int, ...]:
    rows, width = y.shape
    return rows // pairs, pairs, width, link, DTYPES[y.dtype], torch.get_num_threads()


def _wide(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=compute_dtype(like))


class CpuPairStage(PairStage):
    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        moments = _wide(a, 2, a.shape[2])
        extension.pair_hidden_moments(  # type: ignore[union-attr]
            *_sizes(a, roll), a=a.data_ptr(), c=c.data_ptr(), moments=moments.data_ptr()
        )
        return moments

    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        images, crops, width = a.shape
        x = a.new_empty(images * crops * (crops - 1), width)
        extension.pair_hidden(  # type: ignore[union-attr]
            *_sizes(a, roll),
            a=a.data_ptr(), c=c.data_ptr(), norm=norm.data_ptr(), x=x.data_ptr(),
        )  # fmt: skip
        return x

    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        to_a, to_c = _wide(a, *a.shape), _wide(a, *a.shape)
        sums = _wide(a, 2, a.shape[2])
        extension.pair_hidden_sums(  # type: ignore[union-attr]
            *_sizes(a, roll),
            a=a.data_ptr(), c=c.data_ptr(), norm=norm.data_ptr(), grad_x=grad.data_ptr(),
            to_a=to_a.data_ptr(), to_c=to_c.data_ptr(), sums=sums.data_ptr(),
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
        extension.pair_hidden_backward(  # type: ignore[union-attr]
            *_sizes(a, roll),
            a=a.data_ptr(), c=c.data_ptr(), norm=norm.data_ptr(),
            to_a=to_a.data_ptr(), to_c=to_c.data_ptr(), correction=correction.data_ptr(),
            grad_a=grad_a.data_ptr(), grad_c=grad_c.data_ptr(),
        )  # fmt: skip
        return grad_a, grad_c

    def output_moments(self, y: Tensor) -> Tensor:
        moments = _wide(y, 2, y.shape[1])
        extension.pair_output_moments(  # type: ignore[union-attr]
            *_rows(y, 1), y=y.data_ptr(), moments=moments.data_ptr()
        )
        return moments

    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        value, slope = _wide(y, y.shape[0] // pairs), _wide(y, y.shape[0])
        extension.pair_output(  # type: ignore[union-attr]
            *_rows(y, pairs, link),
            y=y.data_ptr(), norm=norm.data_ptr(), weight=weight.data_ptr(), bias=bias.data_ptr(),
            value=value.data_ptr(), slope=slope.data_ptr(),
        )  # fmt: skip
        return value, slope

    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        sums = _wide(y, 2, y.shape[1])
        extension.pair_output_sums(  # type: ignore[union-attr]
            *_rows(y, pairs),
            y=y.data_ptr(), norm=norm.data_ptr(), slope=slope.data_ptr(), grad=grad.data_ptr(),
            sums=sums.data_ptr(),
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
        extension.pair_output_backward(  # type: ignore[union-attr]
            *_rows(y, pairs),
            y=y.data_ptr(), norm=norm.data_ptr(), weight=weight.data_ptr(),
            slope=slope.data_ptr(), grad=grad.data_ptr(), correction=correction.data_ptr(),
            grad_y=grad_y.data_ptr(),
        )  # fmt: skip
        return grad_y
