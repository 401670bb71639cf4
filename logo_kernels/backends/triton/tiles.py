"""Tile sizes as pure functions of shape and dtype: no autotuning, hence none in a graph capture.

Measured on an H200 with Triton 3.6, by events around a launch, caches flushed. Programs of one or
two warps that walk over D in blocks, with as many loads under way as shared memory holds, take half
the time of programs that have a whole image on chip: a multiprocessor then has four programs or
more, and while some wait for memory others compute. The second walk finds its image in L1 or L2.

Figures beside a tile are microseconds. If nothing else is said, they are of the cosine's forward
with gradient, for 2 + 8 crops and 2 targets; the number after the slash is a copy of the same
bytes. A tile without figures was not timed. It was chosen by what aot.py reports: no spills (but
where a comment says so), and as many programs to a multiprocessor as registers leave.

Every tile fits the shared memory of every architecture from sm_80 on, 99 KiB at the least, so that
no tile depends on the device: tests/triton_kernels/test_shared_memory.py.

tests/triton_kernels/aot.py prints what the compiler makes of each choice: registers, spills, shared
memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Rows of one image. The Gram matrix alone is then 64 registers a thread in 8 warps; 256 rows would
# be 256.
MAX_ROWS = 128


class Tile(NamedTuple):
    """The compile-time sizes of a kernel that works on the rows of one image."""

    v_pad: int  # rows, padded to a power of two; tensor cores take 16 at least
    block_d: int  # columns of a tile
    split: int  # parts of block_d that are multiplied apart, one or more for each warp
    rescue_d: int  # columns of a tile of the rescaled evaluation
    num_warps: int
    num_stages: int  # of blocks loaded ahead where D takes several


def operand_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of products: that of all rows if they agree, else fp32, which holds each."""
    return dtypes[0] if len(set(dtypes)) == 1 else torch.float32


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not below n ≥ 1."""
    return 1 << (n - 1).bit_length()


@functools.cache
def tile_for(rows: int, dim: int, dtype: torch.dtype, loaded: int, gradient: bool) -> Tile:
    """The tile for images of `rows` ≤ MAX_ROWS rows of `dim` numbers; operands of `dtype`.

    `loaded`: bytes that are loaded for each number of a tile. Where rows have several dtypes, each
    dtype is a load of its own, and that is more than an operand has. `gradient`: whether there is a
    second walk.
    """
    v_pad = max(16, next_power_of_two(rows))
    d_pad = max(16, next_power_of_two(dim))
    if dtype == torch.float32:
        tile = _full_precision(v_pad, d_pad)
    else:
        tile = _half(v_pad, d_pad, gradient)
    return tile._replace(
        rescue_d=min(tile.rescue_d, d_pad),
        num_stages=max(1, tile.num_stages * dtype.itemsize // loaded),
    )


def _half(v_pad: int, d_pad: int, gradient: bool) -> Tile:
    """Tiles of bf16 and fp16."""
    if v_pad == 16:
        if d_pad <= 128:
            return Tile(16, d_pad, 1, 64, 1, 1)  # D = 128, B = 8192: 29 / 16, in blocks of 64 32
        if d_pad == 256:
            # B = 8192: 45 / 26; blocks of 128, 2 stages 48; the image on chip 56, in two warps 61.
            return Tile(16, 64, 1, 64, 1, 4)
        if d_pad == 512:
            return Tile(16, 256, 1, 64, 1, 2)  # 70 / 48; the image on chip 110
        if d_pad == 1024:
            return Tile(16, 256, 1, 64, 1, 4)  # 124 / 91; on chip 166
        if not gradient:
            # The similarity of 10 rows, D = 2048, B = 8192: 93; the image on chip 259.
            return Tile(16, 256, 1, 64, 1, 4)
        # D = 2048, B = 8192: 231 / 176 (fp16 242), 4 stages 272, 5: 253, 7: 244; (16, 512, 2, 64,
        # 2, 3) 247; on chip 455. B = 1024: 45 / 27, on chip 66. The similarity's backward: 227.
        return Tile(16, 256, 1, 64, 1, 6)
    if v_pad == 32:
        if d_pad <= 64:
            return Tile(32, d_pad, 1, 64, 1, 1)
        # 20 rows, D = 2048, B = 4096: 264 / 153, 4 stages 269; (32, 128, 1, 64, 1, 4) 273, (32,
        # 128, 2, 64, 2, 4) 281, (32, 256, 2, 64, 2, 3) 310.
        return Tile(32, 64, 1, 64, 1, min(6, d_pad // 64))
    if v_pad == 64:
        if d_pad <= 128:
            return Tile(64, d_pad, 1, 32, 4, 1)
        if d_pad <= 1024:
            # The similarity of 64 rows, D = 256, B = 8192: 106, backward 423; 8 warps 113, 713.
            return Tile(64, 64, 1, 32, 4, 3)
        return Tile(64, 128, 1, 64, 8, 3)
    # Beside blocks of 64 columns, 3 stages of them, the Gram matrix itself is too much for sm_86.
    return Tile(128, min(32, d_pad), 1, 16, 8, min(4, max(1, d_pad // 32)))


def _full_precision(v_pad: int, d_pad: int) -> Tile:
    """Tiles of fp32, whose products are four of tf32.

    Blocks have 64 columns at most: tensor cores cut off their sums at 2^-23 of them, 8 times.
    """
    if v_pad == 16:
        # D = 2048, B = 8192: 612 / 349; 6 stages 603, 4: 610; (16, 128, 2, 32, 2, 6) 607.
        return Tile(16, min(64, d_pad), 1, 32, 1, min(8, max(1, d_pad // 64)))
    if v_pad == 32:
        if d_pad <= 32:
            return Tile(32, d_pad, 1, 32, 2, 1)
        return Tile(32, 64, 2, 32, 2, min(4, d_pad // 64))
    if v_pad == 64:
        # Blocks of 64 columns spill registers where mma.sync takes them from there (sm_80 to 120).
        return Tile(64, min(32, d_pad), 1, 32, 4, min(4, max(1, d_pad // 32)))
    # W in two parts takes 128 registers of a thread: 200 bytes spill on sm_90, 680 on sm_80.
    return Tile(128, 16, 1, 16, 8, 3)


class ScaleTile(NamedTuple):
    rows: int
    block_d: int
    num_warps: int


@functools.cache
def scale_tile(dim: int, itemsize: int) -> ScaleTile:
    """For `scale_`: 16 KiB to a program of 4 warps, so that a thread has 8 wide loads under way."""
    block_d = min(2048, max(16, next_power_of_two(dim)))
    return ScaleTile((16384 // itemsize) // block_d, block_d, 4)
