"""A saved gradient times the upstream gradient, in place: what backward has left to do.

One launch, and no look at a value by the host. Where there is nothing to multiply, an upstream
gradient of one, each program reads that one number and ends: a few microseconds and no traffic.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import alignment, launching, multiprocessors
from .rows import narrow, widen
from .tiles import scale_tile

# Per multiprocessor: 2048 threads hold 16 programs of 4 warps; the rest of the work they walk over,
# so that a launch with nothing to do starts 16 programs and not one for each tile.
PROGRAMS = 16


@triton.jit(
    do_not_specialize=[
        "gradient_image", "gradient_row", "upstream_image", "scale_image", "scale_row", "rows",
    ]
)  # fmt: skip
def scale_kernel(
    gradient_ptr, gradient_image, gradient_row,  # [B, V, D] and its strides; D has stride 1
    upstream_ptr, upstream_image,  # [] or [B] and its stride
    scale_ptr, scale_image, scale_row,  # [B, V], read where ROW_SCALED
    rows,  # B·V
    V: tl.constexpr, D: tl.constexpr, PER_IMAGE: tl.constexpr, ROW_SCALED: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    upstream = widen(tl.load(upstream_ptr))
    to_do = True
    if not PER_IMAGE and not ROW_SCALED:
        to_do = upstream != 1.0  # NaN is not one
    if to_do:
        COLUMN_TILES: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
        row_tiles = tl.cdiv(rows, ROWS)
        for index in tl.range(tl.program_id(0), row_tiles * COLUMN_TILES, tl.num_programs(0)):
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


def scale_(
    gradient: Tensor,  # [B, V, D], unit stride over D; written
    upstream: Tensor,  # [] or [B], on the device of the gradient
    row_scale: Tensor | None = None,  # [B, V] fp32, any strides
) -> Tensor:
    """In place, gradient · upstream (· row_scale); the product in fp32, so that fp16 may reach inf.

    Returns `gradient`.
    """
    images, crops, dim = gradient.shape
    if gradient.numel() == 0:
        return gradient
    tile = scale_tile(dim, gradient.element_size())
    rows = images * crops
    needed = triton.cdiv(rows, tile.rows) * triton.cdiv(dim, tile.block_d)
    scale = upstream if row_scale is None else row_scale
    with launching(gradient):
        programs = min(needed, PROGRAMS * multiprocessors(gradient.device.index))
        scale_kernel[(programs,)](
            gradient, gradient.stride(0), gradient.stride(1),
            upstream, upstream.stride(0) if upstream.ndim else 0,
            scale, *(row_scale.stride() if row_scale is not None else (0, 0)),
            rows,
            V=crops, D=dim, PER_IMAGE=upstream.ndim > 0, ROW_SCALED=row_scale is not None,
            ALIGN=alignment(gradient), ROWS=tile.rows, BLOCK_D=tile.block_d,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return gradient
