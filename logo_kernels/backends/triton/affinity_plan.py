"""Tiles and numbers of programs of the affinity's kernels: functions of shape, no autotuning.

A tile is [DEEP, ACROSS, BLOCK_H]. A warp covers a row of up to 512 bytes with 16 bytes to a lane.
Whole warps lie across, as do lanes that a short row leaves over. Each thread holds all DEEP rows of
its columns: DEEP wide loads are under way at once, and a sum over DEEP never leaves the thread.

Sizes were chosen by what aot.py reports: registers, spills, and how many programs a multiprocessor
holds. No timing of other sizes is recorded.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .tiles import next_power_of_two

# A thread's part of a tile, in numbers. What sums over images keep beside one such tile in fp32
# fits the 255 registers of a thread; where an image takes several tiles, not all of it does.
NUMBERS = 64


class LayerTile(NamedTuple):
    """[DEEP, ACROSS, BLOCK_H]."""

    deep: int
    across: int
    block_h: int
    num_warps: int


@functools.cache
def pair_tile(crops: int, width: int, itemsize: int, most_warps: int) -> LayerTile:
    """For kernels over the pairs of an image: DEEP crops, all of them up to 12."""
    deep = next_power_of_two(crops) if crops <= 12 else 8  # 16 of 16: its sums spill registers
    return _tile(deep, width, itemsize, most_warps, next_power_of_two(crops))


@functools.cache
def image_tile(crops: int, width: int, itemsize: int) -> LayerTile:
    """For kernels that have several images across."""
    deep = next_power_of_two(crops) if crops <= 8 else 4
    return _tile(deep, width, itemsize, 4, 128)


def halved(tile: LayerTile) -> LayerTile:
    """Half the images or crops across, in as many warps: for kernels that keep several sums.

    Triton 3.6 takes more registers for such kernels than later versions, and spills those of a
    whole tile.
    """
    return tile._replace(across=max(1, tile.across // 2))


@functools.cache
def column_tile(width: int, itemsize: int, deep: int) -> LayerTile:
    """For sums over the rows of [P, H']: DEEP·ACROSS rows."""
    return _tile(deep, width, itemsize, 8, 256)


def _tile(deep: int, width: int, itemsize: int, most_warps: int, most_across: int) -> LayerTile:
    to_lane = min(16 // itemsize, NUMBERS // deep)
    block_h = min(next_power_of_two(width), 32 * to_lane)
    lanes = max(1, block_h // to_lane)
    across = min(most_across, most_warps * (32 // lanes))
    return LayerTile(deep, across, block_h, max(1, across * lanes // 32))


class RowTile(NamedTuple):
    """[ROWS, BLOCK_H] of [P, H'] in 4 warps: 16 KiB where rows are not too short."""

    rows: int
    block_h: int


@functools.cache
def row_tile(width: int, itemsize: int, most: int) -> RowTile:
    """For kernels that need no sum over rows; `most` columns at once."""
    block_h = min(next_power_of_two(width), most)
    return RowTile(min(64, (16384 // itemsize) // block_h), block_h)


def programs(work: int, column_tiles: int, at_once: int, multiprocessors: int) -> int:
    """How many programs share `work`, for each tile of columns.

    `at_once` of them run on a multiprocessor, by aot.py's table. Each leaves partial sums behind,
    or loads vectors of H numbers: more programs would add to the traffic.
    """
    return max(1, min(work, at_once * multiprocessors // column_tiles))


def segments(images: int, tiles: int, multiprocessors: int) -> int:
    """How many programs share the pairs of an image, which are so many tiles.

    Several cost a second launch, which adds their parts up: one program does all below 16 tiles, or
    where images are many.
    """
    wanted = -(-multiprocessors * 4 // images)
    parts = max(1, min(tiles // 8, wanted))
    return -(-tiles // -(-tiles // parts))  # no part is empty
