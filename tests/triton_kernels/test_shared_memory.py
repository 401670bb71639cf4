"""Every plan fits the shared memory that every architecture grants a program."""

from __future__ import annotations

import itertools

import pytest
import torch

from architectures import ARCHITECTURES
from logo_kernels.backends.triton.affinity_moments import COLUMNS, PARTS
from logo_kernels.backends.triton.affinity_plan import (
    column_tile,
    halved,
    image_tile,
    pair_tile,
    row_tile,
)
from logo_kernels.backends.triton.tiles import MAX_ROWS, scale_tile, tile_for

from .shared_memory import of_image, of_numbers

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIMS = [*range(1, 2050), 4096, 65536, 1 << 20]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.id)


@each_architecture
@pytest.mark.parametrize("dtypes", [*itertools.product(DTYPES, repeat=3)], ids=str)
def test_rows_of_images(architecture, dtypes) -> None:
    """Of crops, targets and features, each of its own dtype."""
    crops, *others = dtypes
    op = crops if len(set(dtypes)) == 1 else torch.float32
    loaded = crops.itemsize + sum(other.itemsize for other in others if other != crops)
    # What a tile is chosen by: the next power of two.
    sizes = {(rows, dim) for rows in (16, 32, 64, MAX_ROWS) for dim in (1 << e for e in range(21))}
    for (rows, dim), gradient in itertools.product(sizes, (False, True)):
        tile = tile_for(rows, dim, op, loaded, gradient)
        used = of_image(tile.v_pad, tile.block_d, tile.num_stages, loaded, op == torch.float32)
        assert used <= architecture.shared_per_block, (rows, dim, tile)


def test_tiles_are_chosen_by_powers_of_two() -> None:
    """So that the test above has seen all of them."""
    for dtype, rows, dim in itertools.product(DTYPES, range(1, MAX_ROWS + 1), (1, 17, 1000, 2049)):
        tile = tile_for(rows, dim, dtype, dtype.itemsize, True)
        assert tile == tile_for(
            max(16, 1 << (rows - 1).bit_length()), 1 << (dim - 1).bit_length(),
            dtype, dtype.itemsize, True,
        )  # fmt: skip


@each_architecture
def test_affinity_and_scale(architecture) -> None:
    numbers = [PARTS * COLUMNS]
    for itemsize, dim in itertools.product((2, 4), DIMS):
        scale = scale_tile(dim, itemsize)
        numbers.append(scale.rows * scale.block_d)
        for most in (256, 1024):
            row = row_tile(dim, itemsize, most)
            numbers.append(row.rows * row.block_h)
        tiles = [column_tile(dim, itemsize, deep) for deep in (4, 8)]
        for crops in (2, 3, 8, 12, 13, 40, 128):
            tiles.append(image_tile(crops, dim, itemsize))
            tiles.append(pair_tile(crops, dim, itemsize, 8))
            tiles.append(halved(pair_tile(crops, dim, itemsize, 4)))
        numbers += [tile.deep * tile.across * tile.block_h for tile in tiles]
    assert of_numbers(max(numbers)) <= architecture.shared_per_block
