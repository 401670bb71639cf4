"""The saved gradients times the upstream gradient, in place: what backward has left to do.

One launch serves all gradients, and the host looks at no value. Where the upstream gradient is one,
there is nothing to multiply: each program reads that number and ends, a few microseconds without
traffic.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .gpu import multiprocessors
from .launch import alignment, launching
from .numbers import narrow, widen
from .tiles import scale_tile

# Programs of a multiprocessor, whose 2048 threads hold 16 of 4 warps. They walk over all tiles, so
# that a launch with nothing to do starts 16 programs and not one for each tile.
PROGRAMS = 16


@triton.jit
def scale_rows(
    gradient_ptr, gradient_image, gradient_row,
    upstream, upstream_ptr, upstream_image,
    scale_ptr, scale_image, scale_row,
    images, before,  # tiles of the gradients before this one
    V: tl.constexpr, D: tl.constexpr, PER_IMAGE: tl.constexpr, ROW_SCALED: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scales this program's tiles of one gradient; returns how many all programs have of it."""
    COLUMN_TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    rows = tl.full([], V, tl.int64) * images
    tiles = (tl.cdiv(rows, ROWS) * COLUMN_TILES).to(tl.int32)
    to_do = True
    if not PER_IMAGE and not ROW_SCALED:
        to_do = upstream != 1.0  # NaN is not one
    if to_do:
        # Tiles of all gradients are dealt out in one round: nobody waits between two of them.
        programs = tl.num_programs(0)
        first = (tl.program_id(0) + programs - before % programs) % programs
        for index in tl.range(first, tiles, programs):
            row = tl.full([ROWS], ROWS, tl.int64) * (index // COLUMN_TILES) + tl.arange(0, ROWS)
            column = index % COLUMN_TILES * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
            image = row // V
            crop = row % V
            inside = row < rows
            factor = tl.full([ROWS], 1.0, tl.float32) * upstream
            if PER_IMAGE:
                factor = widen(tl.load(upstream_ptr + image * upstream_image, inside, other=1.0))
            if ROW_SCALED:
                place = scale_ptr + image * scale_image + crop * scale_row
                factor *= tl.load(place, inside, other=1.0)
            pointer = gradient_ptr + image * gradient_image + crop * gradient_row
            pointer = tl.multiple_of(pointer, ALIGN)[:, None] + column
            mask = inside[:, None]
            if D % BLOCK_D != 0:
                mask = mask & (column < D)
            value = widen(tl.load(pointer, mask, other=0.0, eviction_policy="evict_first"))
            tl.store(pointer, narrow(value * factor[:, None], gradient_ptr.dtype.element_ty), mask)
    return tiles


@triton.jit(
    do_not_specialize=[
        "upstream_image", "images",
        *(f"{of}{k}_{over}" for of in "gs" for k in "012" for over in ("image", "row")),
    ]
)  # fmt: skip
def scale_kernel(
    upstream_ptr, upstream_image,  # [] or [B] and its stride
    g0_ptr, g0_image, g0_row,  # [B, V0, D] and its strides; D has stride 1
    g1_ptr, g1_image, g1_row,  # [B, V1, D], where COUNT > 1
    g2_ptr, g2_image, g2_row,  # [B, V2, D], where COUNT > 2
    s0_ptr, s0_image, s0_row,  # [B, V0] fp32 and its strides, read where SCALED0
    s1_ptr, s1_image, s1_row,
    s2_ptr, s2_image, s2_row,
    images,
    V0: tl.constexpr, V1: tl.constexpr, V2: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr,
    SCALED0: tl.constexpr, SCALED1: tl.constexpr, SCALED2: tl.constexpr,
    PER_IMAGE: tl.constexpr, ALIGN: tl.constexpr,
    ROWS0: tl.constexpr, ROWS1: tl.constexpr, ROWS2: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    upstream = widen(tl.load(upstream_ptr))
    before = scale_rows(
        g0_ptr, g0_image, g0_row, upstream, upstream_ptr, upstream_image,
        s0_ptr, s0_image, s0_row, images, 0,
        V0, D, PER_IMAGE, SCALED0, ALIGN, ROWS0, BLOCK_D,
    )  # fmt: skip
    if COUNT > 1:
        before += scale_rows(
            g1_ptr, g1_image, g1_row, upstream, upstream_ptr, upstream_image,
            s1_ptr, s1_image, s1_row, images, before,
            V1, D, PER_IMAGE, SCALED1, ALIGN, ROWS1, BLOCK_D,
        )  # fmt: skip
    if COUNT > 2:
        scale_rows(
            g2_ptr, g2_image, g2_row, upstream, upstream_ptr, upstream_image,
            s2_ptr, s2_image, s2_row, images, before,
            V2, D, PER_IMAGE, SCALED2, ALIGN, ROWS2, BLOCK_D,
        )  # fmt: skip


def scale_(
    gradients: Sequence[Tensor],  # one to three [B, V_i, D], unit stride over D; written
    upstream: Tensor,  # [] or [B], on the device of the gradients
    row_scales: Sequence[Tensor | None],  # of each, [B, V_i] fp32, any strides
) -> None:
    """Scales all gradients by one launch of `scale_kernel`; by none if all are empty."""
    work = [pair for pair in zip(gradients, row_scales, strict=True) if pair[0].numel()]
    if not work:
        return
    images, _, dim = work[0][0].shape
    tiles = [scale_tile(dim, gradient.element_size()) for gradient, _ in work]
    needed = 0
    for (gradient, _), tile in zip(work, tiles, strict=True):
        needed += -(-images * gradient.shape[1] // tile.rows) * -(-dim // tile.block_d)
    count = len(work)
    present = [gradient for gradient, _ in work]
    while len(work) < 3:  # stand-ins, not read
        work.append(work[0])
        tiles.append(tiles[0])
    (g0, s0), (g1, s1), (g2, s2) = work
    with launching(g0):
        programs = min(needed, PROGRAMS * multiprocessors(g0.device.index))
        scale_kernel[(programs,)](
            upstream, upstream.stride(0) if upstream.ndim else 0,
            g0, g0.stride(0), g0.stride(1),
            g1, g1.stride(0), g1.stride(1),
            g2, g2.stride(0), g2.stride(1),
            *_rows(s0, upstream), *_rows(s1, upstream), *_rows(s2, upstream),
            images,
            V0=g0.shape[1], V1=g1.shape[1], V2=g2.shape[1], COUNT=count, D=dim,
            SCALED0=s0 is not None, SCALED1=s1 is not None, SCALED2=s2 is not None,
            PER_IMAGE=upstream.ndim > 0, ALIGN=alignment(*present),
            ROWS0=tiles[0].rows, ROWS1=tiles[1].rows, ROWS2=tiles[2].rows,
            BLOCK_D=tiles[0].block_d, num_warps=tiles[0].num_warps,
        )  # fmt: skip


def _rows(scale: Tensor | None, upstream: Tensor) -> tuple[Tensor, int, int]:
    """(buffer, strides over B and V); `upstream` stands in where there is none."""
    if scale is None:
        return upstream, 0, 0
    return scale, scale.stride(0), scale.stride(1)
