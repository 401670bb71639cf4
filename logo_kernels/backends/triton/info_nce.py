"""InfoNCE against constants on the host: three launches forward, one backward.

`info_nce_prologue_kernel` reads every row by itself, once; `info_nce_kernel` passes over the
negatives, in splits that run side by side; `info_nce_epilogue_kernel` adds the splits up and makes
losses of them; `info_nce_backward_kernel` makes gradients. The host looks at no value: τ may lie on
the device.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ...units import near
from .gpu import gpu_of
from .info_nce_backward import info_nce_backward_kernel
from .info_nce_epilogue import info_nce_epilogue_kernel
from .info_nce_pass import info_nce_kernel
from .info_nce_plan import (
    CAREFUL_K,
    CHUNK,
    MOST_ROWS,
    PAIRS,
    POSITIVES,
    TWO_HALVES,
    epilogue_tile,
    norm_tile,
    operands_for,
    plan_for,
    query_tile,
    running_maximum,
)
from .info_nce_prologue import info_nce_prologue_kernel
from .launch import (
    alignment,
    gradient_rows,
    launching,
    reduction_workspace,
    strides,
    unit_steps,
)
from .numbers import TL_DTYPE

if TYPE_CHECKING:
    from ...contrast import InfoNCEBackwardCall, InfoNCECall, InfoNCEGradients, InfoNCEResult

REDUCTIONS = {"pairs": "pairs", "none": "images", "mean": "all", "sum": "all"}


class Negatives(NamedTuple):
    """Where negative k of [K, D] lies: (k // of_image)·image + (k % of_image)·row numbers on."""

    memory: Tensor
    rows: int  # K
    of_image: int
    image: int
    row: int
    step: int
    layout: str  # see `load_negatives` and `negatives_tile`


def negatives_of(call: InfoNCECall) -> Negatives:
    """The negatives of the call, or else the positives of all images; both wherever they lie."""
    if call.negatives is not None:
        memory = call.negatives
        count, dim = memory.shape
        of_image, image = 1, 0
        row, step = memory.stride()
    else:
        memory = call.positives
        images, of_image, dim = memory.shape
        count = images * of_image
        image, row, step = memory.stride()
        if of_image == 1:
            row = image
        elif images > 1 and image != of_image * row:
            return Negatives(memory, count, of_image, image, row, step, "images")
    if (row == dim or count == 1) and (step == 1 or dim == 1):
        layout = "dense"
    else:
        layout = "wide" if MOST_ROWS * row + 2 * dim * step >= 2**31 else "strided"
    return Negatives(memory, count, of_image, 0, row, step, layout)


class Queries(NamedTuple):
    """Query n = image·(G + L) + crop is row `crop` of x, or `crop` − G of y."""

    x: Tensor  # [B, G, D]; y where there are none
    y: Tensor  # [B, L, D]; x where there are none
    globals_: int  # G, or 0
    locals_: int  # L, or 0


def queries_of(call: InfoNCECall | InfoNCEBackwardCall) -> Queries:
    x, y = call.global_crops, call.local_crops
    some = y if x is None else x
    assert some is not None
    return Queries(
        some if x is None else x,
        some if y is None else y,
        0 if x is None else x.shape[1],
        0 if y is None else y.shape[1],
    )


def _temperature(call: InfoNCECall | InfoNCEBackwardCall) -> float | Tensor:
    if call.temperature_tensor is None:
        return near(call.temperature, torch.float32)
    return call.temperature_tensor


def info_nce(call: InfoNCECall, result: InfoNCEResult) -> None:
    """Fills losses, and what backward needs of them, by three launches."""
    x, y, globals_, locals_ = queries_of(call)
    t = call.positives
    images, positives, dim = t.shape
    crops = globals_ + locals_
    n = images * crops
    if n == 0:
        return
    negatives = negatives_of(call)
    k, dtype = negatives.rows, negatives.memory.dtype
    operands, op = operands_for(x.dtype, dtype), TL_DTYPE[dtype]
    temperature = _temperature(call)
    on_device = isinstance(temperature, Tensor)
    running = isinstance(temperature, Tensor) or running_maximum(temperature, dtype)
    norms, tile = norm_tile(dim, dtype.itemsize), query_tile(dim)
    with launching(x):
        dense = negatives.layout in ("dense", "images")
        plan = plan_for(n, k, dim, operands, gpu_of(x.device.index))
        shape, splits = plan.shape, plan.splits
        aligned = not dense and k % 16 == 0  # where rows are dense it does not matter
        # Whole tiles: the inner loop reads scales without a mask.
        padded = -(-k // shape.block_k) * shape.block_k
        norm_programs = -(-padded // norms.rows)
        scales = torch.empty(2 * padded + norm_programs, dtype=torch.float32, device=x.device)
        high = torch.empty(n * dim, dtype=dtype, device=x.device)
        low = torch.empty_like(high) if operands == TWO_HALVES else high
        memory, row, step, layout = (
            negatives.memory, negatives.row, negatives.step, negatives.layout,
        )  # fmt: skip
        if layout == "images":
            memory = torch.empty(k, dim, dtype=dtype, device=x.device)
            row, step, layout = dim, 1, "dense"

        chunks = -(-positives // POSITIVES)
        query_programs = -(-n // tile.rows) * chunks
        info_nce_prologue_kernel[(query_programs + norm_programs,)](
            x, *strides(x), y, *strides(y), t, *strides(t),
            negatives.memory, negatives.image, negatives.row, negatives.step,
            high, low, result.pull, scales, memory, temperature,
            n, k, padded, negatives.of_image, crops, globals_, positives, query_programs,
            D=dim, ROWS=tile.rows, BLOCK_D=tile.block_d, PAIRS=POSITIVES,
            NORM_ROWS=norms.rows, NORM_D=norms.block_d,
            UNIT=unit_steps(x, y, t), ALIGN=alignment(x, y, t),
            LAYOUT=negatives.layout, OP=op, OPERANDS=operands, RUNNING=running,
            ON_DEVICE=on_device, K_ALIGNED=aligned, num_warps=4,
        )  # fmt: skip

        parts = scales  # a stand-in where there is nothing to combine
        if splits > 1:
            parts = torch.empty(splits * n * (dim + 2), dtype=torch.float32, device=x.device)
        elif running:
            parts = torch.empty(n, dtype=torch.float32, device=x.device)  # maxima
        own = (crops, positives) if call.excludes_own else (1, 1)
        info_nce_kernel[(-(-n // shape.block_n), splits, plan.groups)](
            high, low, memory, row, step, scales,
            result.lse, result.mean, parts,
            n, k, padded, plan.tiles_per_split, *own, temperature, 1.0,
            D=dim, BLOCK_N=shape.block_n, BLOCK_K=shape.block_k, BLOCK_D=shape.block_d,
            CHUNK_D=shape.chunk_d, CAREFUL_K=min(shape.block_k, CAREFUL_K),
            STAGES=shape.num_stages, NORM_ROWS=norms.rows,
            OP=op, OPERANDS=operands, RUNNING=running,
            OWN=call.excludes_own, LAYOUT=layout, ONE_SPLIT=splits == 1,
            ON_DEVICE=on_device, K_ALIGNED=aligned, num_warps=shape.num_warps,
        )  # fmt: skip

        last = epilogue_tile(dim, splits)
        reduction = REDUCTIONS[call.reduction]
        program_rows = crops if reduction == "images" else last.rows
        programs = -(-n // program_rows)
        partials = counter = scales
        if reduction == "all":
            partials, counter = reduction_workspace(x, programs, 0)
        share = 1 / images if call.reduction == "mean" else 1.0
        info_nce_epilogue_kernel[(programs, 1 if splits == 1 else -(-dim // last.block_d))](
            parts, result.lse, result.mean, result.pull, result.total,
            result.lse if result.terms is None else result.terms,
            partials, counter, temperature,
            n, splits, program_rows, crops, globals_, positives,
            call.gg_weight * share, call.lg_weight * share,
            share / max(1, globals_ * (globals_ - 1)), share / max(1, locals_ * positives),
            D=dim, ROWS=last.rows, BLOCK_D=last.block_d, PAIRS=PAIRS, CHUNK=CHUNK,
            OP=op, RUNNING=running, COMBINE=splits > 1, REDUCTION=reduction,
            TERMS=result.terms is not None, ON_DEVICE=on_device, num_warps=4,
        )  # fmt: skip


def info_nce_backward(call: InfoNCEBackwardCall, result: InfoNCEGradients) -> None:
    """Fills the gradients that are wanted by one launch of `info_nce_backward_kernel`."""
    x, y, globals_, locals_ = queries_of(call)
    t, upstream = call.positives, call.upstream
    to_x, to_y, to_tau = result.grad_global, result.grad_local, result.grad_temperature
    images, positives, dim = t.shape
    crops = globals_ + locals_
    n = images * crops
    tile = query_tile(dim)
    programs = -(-n // tile.rows)
    mantissa, power = math.frexp(call.temperature)
    with launching(x):
        partials = counter = call.mean
        if to_tau is not None:
            partials, counter = reduction_workspace(x, programs, 0)
        info_nce_backward_kernel[(programs,)](
            x, *strides(x), y, *strides(y), t, *strides(t),
            *gradient_rows(to_x, x), *gradient_rows(to_y, y),
            upstream, *upstream.stride(), *(0,) * (3 - upstream.ndim),
            call.pull, call.mean, call.mean if to_tau is None else to_tau, partials, counter,
            _temperature(call), mantissa, power, n, crops, globals_, positives,
            int(to_x is not None), int(to_y is not None),
            D=dim, ROWS=tile.rows, BLOCK_D=tile.block_d, CHUNK=CHUNK,
            UNIT=unit_steps(x, y, t), ALIGN=alignment(x, y, t), ALIGN_OUT=alignment(to_x, to_y),
            TO_TAU=to_tau is not None, ON_DEVICE=call.temperature_tensor is not None, num_warps=4,
        )  # fmt: skip
