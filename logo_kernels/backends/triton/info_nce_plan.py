"""What the host decides for info_nce.py: tiles, splits over the negatives, ranges of numbers.

Pure functions of shape, dtype, temperature, multiprocessors and compute capability; no autotuning.
What they know of time are estimates; none has been measured.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from .tiles import power_of_two

# How operands are made of the fp32 queries and probabilities: see `operands_for`.
HALF, TWO_HALVES, FULL = 0, 1, 2

# 1/τ up to which no maximum is subtracted from the logits, which ±1/τ bounds. In bf16 and fp32, 50:
# probabilities are then within 2^±73 of one, 2^31 of them add up to less than 2^104, and times or
# over a norm of 2^±30 they are still normal numbers. In fp16, 5: within 2^±7.3.
FIXED_MAXIMUM = 50.0
FIXED_MAXIMUM_FP16 = 5.0

# What a program costs beside its tiles, in tiles of negatives: queries in and the pipeline filled;
# a partial result of BLOCK_N·D fp32 out and in again, by L2.
PROGRAM_COST = 16
# A program that has its multiprocessor to itself waits for its exponentials while the tensor cores
# idle, and the other way round: how much longer it takes than one of two that share one.
ALONE = 1.3


def operands_for(queries: torch.dtype, negatives: torch.dtype) -> int:
    """FULL: fp32 operands, tf32 products in three parts, which are as good as fp32.

    HALF: of the dtype of the negatives, where the user's queries are half precision as well.
    TWO_HALVES: of the dtype of the negatives, queries and probabilities in a high and a low part:
    16 bits in bf16, 22 in fp16. What is fp32 of the user's keeps a precision near fp32, while the
    negatives, which are exact as they are, go to the tensor cores untouched.
    """
    if negatives == torch.float32:
        return FULL
    return TWO_HALVES if queries == torch.float32 else HALF


def running_maximum(temperature: float, negatives: torch.dtype) -> bool:
    """Whether a maximum is subtracted from the logits, one that follows them."""
    limit = FIXED_MAXIMUM_FP16 if negatives == torch.float16 else FIXED_MAXIMUM
    return 1 / temperature > limit


# Negatives of a tile in the careful loop: so few that it takes no more registers than the other.
CAREFUL_K = 16
# The most rows of any tile of negatives.
MOST_ROWS = 512
# Positives of a query that a program of the prologue takes; of a row, that the epilogue takes at
# once; and partial sums that the last program of a launch adds up at once.
POSITIVES = 4
PAIRS = 16
CHUNK = 1024


class Shape(NamedTuple):
    """The compile-time sizes of the main kernel."""

    block_n: int  # queries of a program
    block_k: int  # negatives of a tile
    block_d: int  # columns of the mean that a program computes
    chunk_d: int  # columns that are multiplied at a time for the scores; D in one piece, if it can
    num_warps: int
    num_stages: int  # tiles in flight or in use
    resident: int  # programs that a multiprocessor holds


class Plan(NamedTuple):
    shape: Shape
    groups: int  # of columns of the mean
    splits: int  # of the negatives
    tiles_per_split: int  # the last split may have fewer


def shape_for(n: int, dim: int, operands: int, major: int) -> Shape:
    """`major`: of the compute capability. 9: wgmma, whose operands come from shared memory; 10 and
    11: tcgen05, whose sums are in a memory of their own; others: mma.sync, all in registers.

    What the numbers weigh against each other: 128 queries take 16 bytes from L2 per clock where the
    tensor cores are busy, of some 25 that it gives; fewer queries take more. The mean's sums alone
    are BLOCK_N·BLOCK_D/256 registers for each thread of 8 warps, the scores BLOCK_N·BLOCK_K/256 and
    their operands half of that. None of these spills, and none makes ptxas wait for each wgmma in
    turn, which it does silently where registers run out (cap them at 128, for two programs, and it
    does).
    """
    d_pad = max(16, power_of_two(dim))
    wgmma, tcgen05 = major == 9, major in (10, 11)
    if operands == FULL:
        # Each operand is three tf32 ones in registers: little of D at a time.
        block_d, chunk_d = min(d_pad, 128), min(d_pad, 32)
        if wgmma:
            return Shape(64, 32, block_d, chunk_d, 4, 2, 2)
        return Shape(64, 32 if block_d == 128 else 16, block_d, chunk_d, 8, 2, 2 if tcgen05 else 1)
    if operands == TWO_HALVES:
        if d_pad > 128:
            return Shape(64, 64, 128, 64, 8, 3, 2 if tcgen05 else 1)
        if wgmma or tcgen05:
            return Shape(128 if n > 64 else 64, 64, d_pad, d_pad, 8, 2, 1)
        return Shape(64, 64, d_pad, d_pad, 4, 2, 2)
    if d_pad <= 128:
        if n <= 64:
            return Shape(64, 64, d_pad, d_pad, 4, 3, 2)
        if wgmma:
            # As many scores as queries: with 64, operands from shared memory would be the limit.
            return Shape(128, 128, d_pad, d_pad, 8, 3, 1)
        return Shape(128, 64, d_pad, d_pad, 8, 3, 2 if tcgen05 else 1)
    block_n = 128 if n > 64 and (wgmma or tcgen05) else 64
    if d_pad == 256:
        return Shape(block_n, 64, 256, 256, 8, 3 if wgmma else 2, 1)
    return Shape(block_n, 64, 256, 64, 8, 3, 1)


@functools.cache
def plan_for(
    n: int, k: int, dim: int, operands: int, multiprocessors: int, major: int, shared: int
) -> Plan:
    """The plan for queries [n, dim] and negatives [k, dim]; `operands` of `operands_for`.

    The number of splits is the one with the least estimated time: rounds of programs on a
    multiprocessor, times the tiles and the fixed cost of a program.
    """
    shape = shape_for(n, dim, operands, major)
    groups = -(-dim // shape.block_d)
    tiles = -(-k // shape.block_k)
    others = -(-n // shape.block_n) * groups

    def time(splits: int) -> float:
        rounds = -(-others * splits // multiprocessors)
        each = -(-tiles // splits) + PROGRAM_COST
        return rounds * each * (ALONE if rounds == 1 and shape.resident > 1 else 1.0)

    # Beyond 4 programs to a place there is nothing to gain, whatever the rounding.
    most = max(1, 4 * shape.resident * multiprocessors // others)
    per_split = -(-tiles // min(range(1, min(tiles, most) + 1), key=time))
    return Plan(shape, groups, -(-tiles // per_split), per_split)


class SmallTile(NamedTuple):
    rows: int
    block_d: int


@functools.cache
def norm_tile(dim: int, itemsize: int) -> SmallTile:
    """For the norms: 16 KiB to a program of 4 warps; a row in one piece up to D = 2048."""
    block_d = min(2048, max(16, power_of_two(dim)))
    return SmallTile((16384 // itemsize) // block_d, block_d)


@functools.cache
def query_tile(dim: int) -> SmallTile:
    """For queries and their gradients: 16 numbers of each of the few rows that meet to a thread of
    4 warps; a row in one piece up to D = 2048."""
    block_d = min(2048, max(16, power_of_two(dim)))
    return SmallTile(2048 // block_d, block_d)


@functools.cache
def epilogue_tile(dim: int, splits: int) -> SmallTile:
    """For the sum over splits: 16 bytes to a thread of 4 warps, so that few rows occupy all.

    Without it there are only pairs, of as many rows whatever D is.
    """
    if splits == 1:
        return SmallTile(16, 16)
    block_d = min(512, max(16, power_of_two(dim)))
    return SmallTile(512 // block_d, block_d)
