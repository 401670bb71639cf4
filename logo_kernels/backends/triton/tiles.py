"""Tile sizes as pure functions of shape and dtype: no autotuning, hence none in a graph capture.

What the numbers weigh against each other, on a multiprocessor with 64 Ki registers, 227 KiB of
shared memory and (H100, H200) about 25 KiB that must be in flight to keep DRAM busy:

- A tile that holds all of D is read once and multiplied twice. In half precision it takes
  V_PAD·D_PAD/2 registers, and another V_PAD·D_PAD pass through as fp32 products; the layouts that
  `tl.dot` and wide stores ask for are exchanged through 1.5 times its size in shared memory.
- Two programs or more should fit a multiprocessor, so that one computes while another loads: at
  most 128 registers for a thread of 8 warps.
- Otherwise D is walked twice in blocks. The second walk should find an image in L2: images at work
  on 132 multiprocessors should stay below about 35 MB (of 50).

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
    """Of the products: that of all rows if they agree, else fp32, which holds each of them."""
    return dtypes[0] if len(set(dtypes)) == 1 else torch.float32


def power_of_two(n: int) -> int:
    """The smallest one that is not below n ≥ 1."""
    return 1 << (n - 1).bit_length()


@functools.cache
def tile_for(rows: int, dim: int, dtype: torch.dtype, careful: bool = False) -> Tile:
    """The tile for images of `rows` ≤ MAX_ROWS rows of `dim` numbers; operands of `dtype`.

    `careful`: the gradient is rescaled and saturates, which takes registers.
    """
    v_pad = max(16, power_of_two(rows))
    d_pad = max(16, power_of_two(dim))
    tile = _full_precision(v_pad, d_pad) if dtype == torch.float32 else _half(v_pad, d_pad, careful)
    return tile._replace(rescue_d=min(tile.rescue_d, d_pad))


def _half(v_pad: int, d_pad: int, careful: bool) -> Tile:
    """bf16 and fp16: tensor cores, memory bound."""
    if v_pad == 16:
        if d_pad == 2048 and careful:
            # The whole image would take 170 registers. In two blocks, no loading ahead: 128, and
            # the second walk finds the 80 KiB of 2 programs in L1.
            return Tile(16, 1024, 8, 64, 8, 1)
        if d_pad <= 2048:
            # The whole image on chip. A warp for 256 columns (for 128 where there are few): 110
            # registers or less, so 2 programs of 8 warps at D = 2048, 12 of 2 warps at D = 256,
            # with 60 to 80 KiB of 10 crops in flight. (An A100 has room for 1 at D = 2048.)
            warps = {2048: 8, 1024: 4, 512: 4, 256: 2}.get(d_pad, 1)
            return Tile(16, d_pad, warps, 64, warps, 1)
        # 20 KiB in flight in each of 4 programs.
        return Tile(16, 512, 4, 64, 4, 3)
    if v_pad == 32:
        if d_pad <= 512:
            # On chip, a warp for 64 columns: 110 registers, 2 programs at D = 512.
            warps = max(1, d_pad // 64)
            return Tile(32, d_pad, warps, 64, warps, 1)
        return Tile(32, 256, 8, 64, 8, 3)  # 2 programs, 128 KiB each at D = 2048
    if v_pad == 64:
        # From here on the Gram matrix occupies all warps by itself.
        if d_pad <= 128:
            return Tile(64, d_pad, 1, 32, 4, 1)
        if d_pad <= 1024:
            return Tile(64, 64, 1, 32, 8, 4)  # 2 programs, 128 KiB each at D = 1024
        return Tile(64, 128, 1, 64, 8, 3)  # 1 program: two would have 67 MB at work at D = 2048
    return Tile(128, min(64, d_pad), 1, 16, 8, 3)  # 1 program of about 250 registers


def _full_precision(v_pad: int, d_pad: int) -> Tile:
    """fp32: full-precision products, which are FMAs, about as long as the memory traffic.

    16 accumulators to a thread, 4 by 4, and 16 columns to a part: 8 loads of 16 bytes from shared
    memory feed 64 FMAs, and 128 registers hold the operands.
    """
    if v_pad == 16:
        split = min(16, d_pad // 16)
        return Tile(16, 16 * split, split, 64, max(1, split // 2), 1)
    if v_pad == 32:
        # 32 columns to a part: with 16, ptxas spills two registers to stay at 80.
        split = min(4, max(1, d_pad // 32))
        return Tile(32, min(32 * split, d_pad), split, 32, 2 * split, 1)
    if v_pad == 64:
        return Tile(64, 16, 1, 16, 8, 1)
    # Threads of 16 warps have 128 registers at most: a few words spill. Triton 3.6 takes no fewer
    # columns.
    return Tile(128, 16, 1, 16, 16, 1)


class ScaleTile(NamedTuple):
    rows: int
    block_d: int
    num_warps: int


@functools.cache
def scale_tile(dim: int, itemsize: int) -> ScaleTile:
    """For `scale`: 16 KiB to a program of 4 warps, so that a thread has 8 wide loads under way."""
    block_d = min(2048, max(16, power_of_two(dim)))
    return ScaleTile((16384 // itemsize) // block_d, block_d, 4)
