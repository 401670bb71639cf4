"""InfoNCE's pass over the negatives on the CPU, at the borders of what it cuts a problem into.

Bands of 6 queries; tiles of 256 negatives or fewer, in panels of vectors; parts of 8 tiles and
more; sums over 128 columns.
"""

import pytest
import torch

from oracles import softmax_over_negatives
from support import EPS, attend, error


def problem(queries, negatives, dim, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries + negatives + dim)
    q = torch.randn(queries, dim, generator=generator, dtype=torch.float64)
    n = torch.randn(negatives, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(q, dim=1).to(dtype), n.to(dtype)


def check(cpu, q, n, temperature, own=None):
    found_lse, found_mean = attend(cpu, q, n, temperature, own)
    lse, mean = softmax_over_negatives(q, n, temperature, own)
    # A logit's error: of the cosine, 1/τ times as large. Of the lse itself, in its last digit.
    allowed = 4 * EPS[q.dtype] * (1 / temperature + float(lse.abs().max()))
    assert error(found_lse, lse) <= allowed
    assert error(found_mean, mean) <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize(
    "negatives", [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 513]
)
def test_tile_of_negatives(cpu, negatives, temperature, dtype):
    check(cpu, *problem(5, negatives, 20, dtype), temperature)


@pytest.mark.parametrize("queries", [*range(1, 14), 95, 96, 97, 193])
def test_block_of_queries(cpu, queries):
    check(cpu, *problem(queries, 140, 20), 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129, 520, 2048])
def test_columns(cpu, dim, dtype):
    check(cpu, *problem(7, 150, dim, dtype), 0.2)


def check_bf16(cpu, queries, negatives, dim, temperature, own=None):
    """Unit rows of sixteen quarters: bf16 has them exactly, and no weight but is rounded to it."""
    generator = torch.Generator().manual_seed(queries + negatives + dim)

    def rows(count):
        signs = torch.randint(0, 2, (count, 16), generator=generator) / 2 - 0.25
        columns = torch.rand(count, dim, generator=generator).argsort(1)[:, :16]
        return torch.zeros(count, dim).scatter_(1, columns, signs)

    q, n = rows(queries), rows(negatives)
    found_lse, found_mean = attend(cpu, q.bfloat16(), 3 * n.bfloat16(), temperature, own)
    lse, mean = softmax_over_negatives(q, n, temperature, own)
    assert error(found_lse, lse) <= 4 * EPS[torch.float32] * (1 / temperature + negatives)
    assert error(found_mean, mean) <= EPS[torch.bfloat16] / 2 * float(mean.abs().max())


@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("negatives", [1, 2, 15, 17, 63, 64, 65, 127, 129, 255, 256, 257, 3001])
def test_bf16_tile_of_negatives(cpu, negatives, temperature):
    check_bf16(cpu, 13, negatives, 20, temperature)


@pytest.mark.parametrize("dim", [16, 17, 31, 32, 33, 63, 64, 65, 66, 127, 129, 777])
def test_bf16_columns(cpu, dim):
    check_bf16(cpu, 7, 150, dim, 0.2)


@pytest.mark.parametrize(("images", "own"), [(5, (3, 51)), (2, (49, 2401))])
def test_bf16_own_negatives(cpu, images, own):
    check_bf16(cpu, images * own[0], images * own[1], 33, 0.2, own)


def test_bf16_nan_stays_in_its_query(cpu):
    q, n = problem(20, 301, 41)
    q[7, 3] = torch.nan
    q, n = q.bfloat16(), n.bfloat16()
    lse, mean = attend(cpu, q, n, 0.2)
    assert lse.isnan().nonzero().tolist() == [[7]]
    assert mean.isnan().all(1).nonzero().tolist() == [[7]]
    assert mean.isnan().sum() == 41
    n[300, 2] = torch.inf
    lse, mean = attend(cpu, q, n, 0.2)
    assert lse.isnan().all()
    assert mean.isnan().all()


@pytest.mark.parametrize("queries", [1, 13, 100])
@pytest.mark.parametrize("temperature", [0.2, 0.005])
def test_parts(cpu, queries, temperature):
    """The last tile, and so the last part, is not full."""
    check(cpu, *problem(queries, 5 * 1024 + 3, 32), temperature)


@pytest.mark.parametrize("temperature", [0.2, 1e-3])
@pytest.mark.parametrize(
    ("images", "own"),
    [(2, (3, 1)), (5, (3, 50)), (3, (2, 128)), (4, (7, 300)), (130, (2, 2)), (2, (49, 2400))],
)
def test_own_negatives(cpu, images, own, temperature):
    """Hidden ones that end within a tile, fill it, fill a part (two of three tiles, or all)."""
    q, n = problem(images * own[0], images * own[1], 24)
    check(cpu, q, n, temperature, own)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 0.02, 0.03])
@pytest.mark.parametrize("order", ["rising", "falling"])
def test_maximum(cpu, temperature, order):
    """Cosines all below zero: empty columns, whose cosine is 0, would hide them."""
    angle = torch.linspace(3.1, 1.6, 2001, dtype=torch.float64)
    n = torch.stack([angle.cos(), angle.sin()], 1).float()
    n = n if order == "rising" else n.flip(0)
    q = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.6, -0.8]])
    check(cpu, q, n, temperature)


@pytest.mark.parametrize("shape", [(1, 4096, 64), (40, 9000, 64), (500, 300, 48), (300, 2500, 16)])
@pytest.mark.parametrize("temperature", [0.2, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_change_nothing(cpu, threads, shape, dtype, temperature):
    q, n = problem(*shape)
    q, n = q.to(dtype), n.to(dtype)
    threads(1)
    one = attend(cpu, q, n, temperature)
    for count in (2, 3, 7):
        threads(count)
        several = attend(cpu, q, n, temperature)
        for value, same in zip(one, several, strict=True):
            assert torch.equal(value, same)


def test_a_query_is_not_moved_by_its_neighbours(cpu):
    """The same bits in whatever batch; NaN in one query stays there."""
    q, n = problem(20, 300, 40)
    q[7] = torch.nan
    for temperature in (0.2, 0.005):
        lse, mean = attend(cpu, q, n, temperature)
        assert lse[7].isnan()
        assert mean[7].isnan().all()
        alone = attend(cpu, q[8:11].contiguous(), n, temperature)
        for value, same in zip((lse, mean), alone, strict=True):
            assert torch.equal(value[8:11], same)
        assert lse.isfinite().sum() == 19
