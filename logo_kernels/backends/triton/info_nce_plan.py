"""What the host decides for info_nce.py: tiles, splits over the negatives, operands.

These are pure functions of shape, dtype, temperature and what a GPU has; nothing is autotuned.
Figures are µs on an H200, in bf16 against dense negatives, with a flushed L2, of a pass together
with the norms before it and the sum over splits after it. What has no figure is estimated.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .gpu import Gpu
from .tiles import next_power_of_two

# How operands are made of the fp32 queries and probabilities: see `operands_for`.
HALF, TWO_HALVES, FULL = 0, 1, 2

# 1/τ up to which no maximum is subtracted from the logits, which ±1/τ bounds. In bf16 and fp32 it
# is 50: probabilities are then within 2^±73 of one, 2^31 of them add up to less than 2^104, and
# times or over a norm of 2^±30 they are still normal numbers. In fp16 it is 5: within 2^±7.3.
FIXED_MAXIMUM = 50.0
FIXED_MAXIMUM_FP16 = 5.0

# PROGRAM_COST: the cost of a program beside its tiles, in tiles of negatives. ALONE: the time of a
# program that has a multiprocessor to itself, over the time of two that share one. Alone, it waits
# for its exponentials while the tensor cores idle, and the other way round. Both follow from these
# figures of D = 128, tiles of 64 queries and 128 negatives, two programs at once on 132
# multiprocessors; µs by number of splits:
#
#     N = 4096, K = 65536    2: 283    3: 274    4: 219    5: 325    8: 225
#     N = 1024, K = 65536    8: 89     16: 74
#     N = 512, K = 65536     16: 57    24: 58    32: 51    47: 64
#
# The estimate leaves 24 to 50 µs over, whatever the number of splits; only 5 splits took 34 more.
# (D = 256, one program at once, N = 4096: 4: 427, 8: 432; N = 16384, K = 16384: 1: 417, 2: 433.
# There a program costs 10 tiles at most.)
PROGRAM_COST = 5
ALONE = 0.7


def operands_for(queries: torch.dtype, negatives: torch.dtype) -> int:
    """Which operands queries and probabilities become.

    FULL: fp32, in tf32 products of three parts, which are as good as fp32.
    HALF: the dtype of the negatives, where the user's queries are half precision as well.
    TWO_HALVES: the dtype of the negatives, in a high and a low part: 16 bits in bf16, 22 in fp16.
    Queries that are fp32 keep a precision near fp32, while negatives, which are exact as they are,
    go to the tensor cores untouched.
    """
    if negatives == torch.float32:
        return FULL
    return TWO_HALVES if queries == torch.float32 else HALF


def running_maximum(temperature: float, negatives: torch.dtype) -> bool:
    """Whether a maximum that follows the logits is subtracted from them."""
    limit = FIXED_MAXIMUM_FP16 if negatives == torch.float16 else FIXED_MAXIMUM
    return 1 / temperature > limit


# Negatives of a tile in the careful loop: so few that it takes no more registers than the other.
CAREFUL_K = 16
# The most rows of any tile of negatives.
MOST_ROWS = 512
# Positives of a query that one program of the prologue takes.
POSITIVES = 4
# Positives of a query that the epilogue takes at once.
PAIRS = 16
# Partial sums that the last program of a launch adds up at once.
CHUNK = 1024


class Shape(NamedTuple):
    """The compile-time sizes of the main kernel."""

    block_n: int  # queries of a program
    block_k: int  # negatives of a tile
    block_d: int  # columns of the mean that a program computes
    chunk_d: int  # columns that are multiplied at a time for the scores; D in one piece, if it can
    num_warps: int
    num_stages: int  # tiles in flight or in use
    resident: int  # programs that a multiprocessor holds, by registers


class Plan(NamedTuple):
    shape: Shape
    groups: int  # of columns of the mean
    splits: int  # of the negatives
    tiles_per_split: int  # the last split may have fewer


def shape_for(n: int, dim: int, operands: int, major: int) -> Shape:
    """The sizes for queries [n, dim], by the first number of the compute capability.

    `major` 9 has wgmma, whose operands come from shared memory; 10 and 11 have tcgen05, whose sums
    are in a memory of their own; others have mma.sync, all in registers.

    The mean's sums alone are BLOCK_N·BLOCK_D/32 registers for each thread of one warp, the scores
    BLOCK_N·BLOCK_K/32 and their operands half of that. None of these shapes spills more than a few
    words. None makes ptxas wait for each wgmma in turn, which it does silently where registers run
    out.
    """
    d_pad = max(16, next_power_of_two(dim))
    wgmma, tcgen05 = major == 9, major in (10, 11)
    if operands == FULL:
        # Each operand is three tf32 ones in registers: little of D at a time.
        block_d, chunk_d = min(d_pad, 128), min(d_pad, 32)
        if wgmma and n > 64:
            # N = 1024, K = 65536, D = 128: 822; 2 stages 853, tiles of 32 negatives 1023, of 128
            # 1140; 64 queries in 4 warps 1134, and 1245 with tiles of 32. D = 256: 2410, and 3345.
            return Shape(128, 64, block_d, chunk_d, 8, 3, 1)
        if wgmma:
            return Shape(64, 32, block_d, chunk_d, 4, 2, 2)
        return Shape(64, 32 if block_d == 128 else 16, block_d, chunk_d, 8, 2, 2 if tcgen05 else 1)
    if operands == TWO_HALVES:
        if wgmma:
            # N = 4096, K = 65536, D = 128: 474, 2 stages 482; 128 queries in 8 warps 610, or with
            # tiles of 128 negatives 573. D = 256: 3403; in 8 warps 7286, or 128 queries 5085.
            return Shape(64, 64, min(d_pad, 128), d_pad if d_pad <= 128 else 64, 4, 3, 2)
        if d_pad > 128:
            return Shape(64, 64, 128, 64, 8, 3, 2 if tcgen05 else 1)
        if tcgen05:
            return Shape(128 if n > 64 else 64, 64, d_pad, d_pad, 8, 2, 1)
        return Shape(64, 64, d_pad, d_pad, 4, 2, 2)
    if d_pad <= 128:
        if wgmma:
            # One warpgroup a program, two programs that take turns at the tensor cores. Measured,
            # N = 4096, K = 65536, D = 128: 219 µs. 2 stages 228, 4: 286; tiles of 64 negatives 257,
            # of 256: 446; 128 queries in 8 warps 275. N = 512: 51, and 56 with tiles of 64.
            # D = 64: 150 with 4 stages, and 205 with 128 queries in 8 warps. Negatives kept as [D,
            # K]: 222; 128 queries in 8 warps 258.
            return Shape(64, 128, d_pad, d_pad, 4, 3 if d_pad == 128 else 4, 2)
        if tcgen05 and n > 64:
            return Shape(128, 64, d_pad, d_pad, 8, 3, 2)
        return Shape(64, 64, d_pad, d_pad, 4, 3, 2)
    block_n = 128 if n > 64 and (wgmma or tcgen05) else 64
    if d_pad == 256:
        # Measured with wgmma, N = 4096, K = 65536: 427 µs; 64 queries in 4 warps 426 with 2 stages,
        # 472 with 3, 512 with tiles of 32.
        return Shape(block_n, 64, 256, 256, 8, 3 if wgmma else 2, 1)
    return Shape(block_n, 64, 256, 64, 8, 3, 1)


def shared_bytes(shape: Shape, operands: int, major: int) -> int:
    """Bytes of shared memory that a program takes at most; the compiler may do with less.

    The formula follows Triton 3.9; test_aot.py compares.
    """
    itemsize, parts = (4, 1) if operands == FULL else (2, 2 if operands == TWO_HALVES else 1)
    tile = shape.block_k * shape.block_d * itemsize
    in_chunks = shape.chunk_d < shape.block_d or operands == FULL
    wgmma, tcgen05 = major == 9, major in (10, 11)
    # One more than are in flight, for products that have begun and not ended.
    ahead = shape.num_stages + (tcgen05 or (wgmma and in_chunks))
    if in_chunks:
        rows = parts * shape.block_n + shape.block_k
        return ahead * rows * shape.chunk_d * itemsize + tile
    queries = parts * shape.block_n * shape.block_d * itemsize
    columns = 4 * shape.block_k * (shape.num_stages - 1)
    barriers = 16 * shape.block_k + 64 if tcgen05 else 0
    return queries + ahead * tile + columns + barriers


def fitting_shape(n: int, dim: int, operands: int, gpu: Gpu) -> Shape:
    """`shape_for` with as many tiles in flight, one at least, and as many programs at once as the
    GPU's shared memory holds."""
    shape = shape_for(n, dim, operands, gpu.major)
    while shape.num_stages > 1 and shared_bytes(shape, operands, gpu.major) > gpu.shared:
        shape = shape._replace(num_stages=shape.num_stages - 1)
    # A multiprocessor has 1 KiB beyond the most that a block may have, and takes 1 KiB of each
    # block for itself.
    held = (gpu.shared + 1024) // (shared_bytes(shape, operands, gpu.major) + 1024)
    return shape._replace(resident=max(1, min(shape.resident, held)))


@functools.cache
def misfit(dim: int, operands: int, gpu: Gpu) -> str | None:
    """Why programs cannot run on the GPU, or None."""
    if gpu.major < 8:
        return "info_nce needs the tf32 and bf16 products of compute capability 8.0"
    needed = max(
        shared_bytes(fitting_shape(n, dim, operands, gpu), operands, gpu.major) for n in (1, 65)
    )
    if needed <= gpu.shared:
        return None
    return (
        f"info_nce takes up to {needed} bytes of shared memory for a block at D = {dim}, and this "
        f"device has {gpu.shared}"
    )


@functools.cache
def plan_for(n: int, k: int, dim: int, operands: int, gpu: Gpu) -> Plan:
    """The plan for queries [n, dim] and negatives [k, dim]; `operands` of `operands_for`.

    The number of splits is the one with the least estimated time: rounds of programs on all
    multiprocessors, times the tiles and the fixed cost of a program.
    """
    shape = fitting_shape(n, dim, operands, gpu)
    groups = -(-dim // shape.block_d)
    tiles = -(-k // shape.block_k)
    others = -(-n // shape.block_n) * groups
    places = shape.resident * gpu.multiprocessors

    def time(splits: int) -> float:
        rounds, left = divmod(others * splits, places)
        last = 1.0 if left else 0.0
        if shape.resident > 1 and 0 < left <= gpu.multiprocessors:
            last = ALONE
        return (rounds + last) * (-(-tiles // splits) + PROGRAM_COST)

    # Beyond 4 programs to a place there is nothing to gain, whatever the rounding.
    most = max(1, 4 * places // others)
    per_split = -(-tiles // min(range(1, min(tiles, most) + 1), key=time))
    return Plan(shape, groups, -(-tiles // per_split), per_split)


class SmallTile(NamedTuple):
    rows: int
    block_d: int


@functools.cache
def norm_tile(dim: int, itemsize: int) -> SmallTile:
    """For the norms of negatives: 16 KiB to a program of 4 warps; a row whole up to D = 2048."""
    block_d = min(2048, max(16, next_power_of_two(dim)))
    return SmallTile((16384 // itemsize) // block_d, block_d)


@functools.cache
def query_tile(dim: int) -> SmallTile:
    """For queries and their gradients: 16 bytes of half precision to a thread of 4 warps, since a
    program waits for each of the rows that meet in turn; a row whole up to D = 2048."""
    block_d = min(2048, max(16, next_power_of_two(dim)))
    return SmallTile(max(1, 1024 // block_d), block_d)


@functools.cache
def epilogue_tile(dim: int, splits: int) -> SmallTile:
    """For the sum over splits: 16 bytes to a thread of 4 warps, so that few rows occupy all.

    With one split there is no such sum, only pairs: as many rows whatever D is.
    """
    if splits == 1:
        return SmallTile(16, 16)
    block_d = min(512, max(16, next_power_of_two(dim)))
    return SmallTile(512 // block_d, block_d)
