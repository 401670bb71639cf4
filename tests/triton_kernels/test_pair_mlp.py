"""The pair stage's kernels against its definition in float64; and through `LocalAffinity`."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from affinity_oracle import Definition, pairs_of
from logo_kernels.affinity import LocalAffinity
from logo_kernels.backends.pairs import LINKS, PairStage
from logo_kernels.backends.protocol import Problem
from logo_kernels.backends.triton.pair_plan import (
    NUMBERS,
    column_tile,
    image_tile,
    pair_tile,
    programs,
    row_tile,
    segments,
)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = (FP32, BF16, FP16)
# Of a result that is rounded to the dtype of the inputs. Other results are fp32 whatever that is.
ROUNDING = {FP32: 1e-6, BF16: 2.0**-8, FP16: 2.0**-11}
DEFINITION = Definition()


class Shape(NamedTuple):
    images: int
    crops: int
    width: int
    roll: int = 0

    @property
    def pairs(self) -> int:
        return self.crops * (self.crops - 1)

    @property
    def rows(self) -> int:
        return self.images * self.pairs


SHAPES = (
    Shape(1, 2, 1),
    Shape(2, 2, 7, 1),
    Shape(5, 3, 64, 4),
    Shape(2, 8, 256, 1),  # the tile that the paper's sizes take
    Shape(1, 8, 300),  # two tiles of columns, or three
    Shape(5, 8, 7, 2),  # several images across and in a program
    Shape(2, 19, 40, 1),  # two groups of crops
)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(scope="session")
def stage(kernels) -> PairStage:
    return kernels.pair_stage


class Inputs:
    """Numbers of which no n(v) is near 0, where rounding would decide: all of n is exact."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.device = device
        crops = shape.images, shape.crops, shape.width
        self.a, self.c = (self.grid(*crops).to(dtype) for _ in range(2))
        self.y = self.grid(shape.rows, shape.width).to(dtype)
        self.norm = torch.stack(
            [
                self.grid(shape.width) + 2.0**-5,
                2.0 ** self.numbers(shape.width, of=3) * (1 - 2 * self.numbers(shape.width, of=2)),
                self.numbers(shape.width, of=5) / 4 - 0.5,
            ]
        )
        self.grad = self.normal(shape.rows, shape.width).to(dtype)
        self.weight, self.bias = self.normal(shape.width), self.normal(1)
        self.slope, self.upstream = self.normal(shape.rows), self.normal(shape.images)
        self.correction = self.normal(2, shape.width)

    def numbers(self, *shape: int, of: int) -> Tensor:
        """0, 1, .., of − 1."""
        drawn = torch.randint(of, shape, generator=self.generator)
        return drawn.to(self.device, torch.float32)

    def grid(self, *shape: int) -> Tensor:
        return (self.numbers(*shape, of=97) - 48) / 16

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


def agree(got: Tensor, exact: Tensor, rounding: float, terms: float = 1.0) -> None:
    """Within `rounding` of the element, and of the `terms` that cancelled in it."""
    assert got.shape == exact.shape
    assert got.is_contiguous()
    torch.testing.assert_close(got.double(), exact, rtol=rounding, atol=rounding * terms)


@every_dtype
@every_shape
def test_hidden_moments(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    got = stage.hidden_moments(given.a, given.c, shape.roll)
    assert got.dtype == FP32
    agree(got, DEFINITION.hidden_moments(given.a, given.c, shape.roll), 2e-6)


@pytest.mark.parametrize("crops", [2, 8, 19])
def test_nothing_cancels_in_hidden_moments(crops, stage, device) -> None:
    """a and c are a thousand times as large as their sums."""
    a, small = torch.randn(2, 6, crops, 5, device=device, dtype=torch.float64)
    a = (1000 * (1 + a[:, :1].expand_as(a))).float()  # alike within an image
    c = (small - a.double()).float()
    got, exact = stage.hidden_moments(a, c, 0), DEFINITION.hidden_moments(a, c, 0)
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@every_dtype
@every_shape
def test_hidden(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    got = stage.hidden(given.a, given.c, given.norm, shape.roll)
    assert got.dtype == dtype
    agree(got, DEFINITION.hidden(given.a, given.c, given.norm, shape.roll), ROUNDING[dtype])


@every_dtype
@every_shape
def test_hidden_sums(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    arguments = given.grad, given.a, given.c, given.norm, shape.roll
    exact = DEFINITION.hidden_sums(*arguments)
    for got, right in zip(stage.hidden_sums(*arguments), exact, strict=True):
        assert got.dtype == FP32
        agree(got, right, 1e-6, terms=10 + shape.rows**0.5)


@every_dtype
@every_shape
def test_hidden_backward(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    to_a, to_c = (given.normal(*given.a.shape) for _ in range(2))
    arguments = to_a, to_c, given.a, given.c, given.norm, given.correction, shape.roll
    exact = DEFINITION.hidden_backward(*arguments)
    for got, right in zip(stage.hidden_backward(*arguments), exact, strict=True):
        assert got.dtype == dtype
        agree(got, right, ROUNDING[dtype], terms=10 * shape.crops)


@every_dtype
@every_shape
def test_output_moments(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    got = stage.output_moments(given.y)
    assert got.dtype == FP32
    agree(got, DEFINITION.output_moments(given.y), 2e-6)


def test_output_moments_far_from_zero(stage, device) -> None:
    """E y² − (E y)² would be nothing but rounding, which is 2.4e-4 of each y."""
    y = 3000 + torch.randn(1500, 9, device=device)
    exact = DEFINITION.output_moments(y)
    error = (stage.output_moments(y).double() - exact).abs().amax(1)
    assert error[0] < 1e-3
    assert error[1] < 1e-4


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@every_dtype
@every_shape
def test_output(shape, dtype, link, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    arguments = given.y, given.norm, given.weight, given.bias, shape.pairs, link
    exact = DEFINITION.output(*arguments)
    for got, right in zip(stage.output(*arguments), exact, strict=True):
        assert got.dtype == FP32
        agree(got, right, 2e-6, terms=5 * shape.width**0.5)


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
def test_links_of_any_f(link, stage, device) -> None:
    sizes = torch.tensor([0.0, 1e-30, 1e-6, 0.1, 1.0, 5.0, 15.0, 17.0, 30.0, 80.0, 1e3, 1e4])
    f = torch.cat([-sizes, sizes]).to(device)
    # relu(n(y)) is f or 0, of which the weight or the constant makes f.
    one = torch.tensor([[0.0], [1.0], [0.0]], device=device)
    for sign in (1.0, -1.0):
        weight, nothing = torch.tensor([sign], device=device), torch.zeros(1, device=device)
        arguments = f.unsqueeze(1), one, weight, nothing, 1, link
        for got, right in zip(stage.output(*arguments), DEFINITION.output(*arguments), strict=True):
            # e^f by 2^(f·log2 e): the product alone, rounded, is off by 1.2e-6 of it at f = 30.
            torch.testing.assert_close(got.double(), right, rtol=4e-6, atol=1e-37)


@pytest.mark.parametrize("images", [1, 3])
def test_pairs_of_few_images_are_divided(images, stage, device) -> None:
    shape = Shape(images, 40, 3)
    given = Inputs(shape, FP32, device)
    arguments = given.y, given.norm, given.weight, given.bias, shape.pairs, LINKS["softplus"]
    for got, right in zip(stage.output(*arguments), DEFINITION.output(*arguments), strict=True):
        agree(got, right, 2e-6)


@every_dtype
@every_shape
def test_output_sums(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    arguments = given.y, given.norm, given.slope, given.upstream, shape.pairs
    got = stage.output_sums(*arguments)
    assert got.dtype == FP32
    agree(got, DEFINITION.output_sums(*arguments), 1e-6, terms=10 + shape.rows**0.5)


@every_dtype
@every_shape
def test_output_backward(shape, dtype, stage, device) -> None:
    given = Inputs(shape, dtype, device)
    arguments = (
        given.y, given.norm, given.weight, given.slope, given.upstream, given.correction,
        shape.pairs,
    )  # fmt: skip
    got = stage.output_backward(*arguments)
    assert got.dtype == dtype
    agree(got, DEFINITION.output_backward(*arguments), ROUNDING[dtype], terms=10)


@every_dtype
def test_nan(dtype, stage, device) -> None:
    """It shows where it came from and in what is summed over it, and nowhere else."""
    shape = Shape(3, 3, 20, 1)
    given = Inputs(shape, dtype, device)
    a, c, y = given.a.clone(), given.c.clone(), given.y.clone()
    a[0, 1, 2] = c[2, 0, 19] = y[4, 7] = float("nan")
    link = LINKS["softplus"]
    for name, arguments in {
        "hidden_moments": (a, c, 1),
        "hidden": (a, c, given.norm, 1),
        "output_moments": (y,),
        "output": (y, given.norm, given.weight, given.bias, shape.pairs, link),
        "output_backward": (
            y, given.norm, given.weight, given.slope, given.upstream, given.correction, shape.pairs,
        ),
    }.items():  # fmt: skip
        got, exact = getattr(stage, name)(*arguments), getattr(DEFINITION, name)(*arguments)
        for one, right in zip(
            *((x,) if isinstance(x, Tensor) else x for x in (got, exact)), strict=True
        ):
            assert right.isnan().any()
            assert torch.equal(one.isnan(), right.isnan()), name


def test_nan_gradient(stage, device) -> None:
    shape = Shape(2, 3, 20)
    given = Inputs(shape, FP32, device)
    shown = DEFINITION.hidden(given.a, given.c, given.norm, 0) > 0
    pair, column = shown.nonzero()[3]
    given.grad[pair, column] = float("nan")
    arguments = given.grad, given.a, given.c, given.norm, 0
    exact = DEFINITION.hidden_sums(*arguments)
    for got, right in zip(stage.hidden_sums(*arguments), exact, strict=True):
        assert got.isnan().any()
        assert torch.equal(got.isnan(), right.isnan())


@pytest.mark.parametrize("roll", [-1, 0, 3, 7])
def test_any_roll(roll, stage, device) -> None:
    given = Inputs(Shape(3, 2, 4), FP32, device)
    x = stage.hidden(given.a, given.c, given.norm, roll)
    agree(x, DEFINITION.hidden(given.a, given.c, given.norm, roll), 1e-6)
    assert len(pairs_of(given.a, given.c, roll)) == len(x)


@pytest.mark.parametrize("width", [1, 3, 8, 64, 100, 128, 256, 300, 4096, 100_000])
def test_every_tile_is_one_that_triton_takes(width) -> None:
    """Powers of two, one number or more to a lane, and sums that fit the registers of a thread."""
    for itemsize in (2, 4):
        tiles = [column_tile(width, itemsize, deep) for deep in (4, 8)]
        for crops in (2, 3, 8, 10, 16, 17, 300):
            tiles.append(image_tile(crops, width, itemsize))
            tiles += [pair_tile(crops, width, itemsize, warps) for warps in (4, 8)]
        for tile in tiles:
            size = tile.deep * tile.across * tile.block_h
            assert all(value > 0 and value & (value - 1) == 0 for value in tile)
            assert size <= NUMBERS * 32 * tile.num_warps
        for most in (256, 1024):
            rows = row_tile(width, itemsize, most)
            assert all(value > 0 and value & (value - 1) == 0 for value in rows)


def test_programs_and_segments() -> None:
    assert programs(1, 1, 2, 132) == 1
    assert programs(10_000, 1, 2, 132) == 264
    assert programs(10_000, 2, 3, 132) == 198
    assert programs(10, 1000, 2, 132) == 1
    assert segments(1, 7, 132) == 1
    assert segments(1000, 400, 132) == 1
    for images in (1, 3, 100):
        for tiles in (16, 17, 31, 1000):
            parts = segments(images, tiles, 132)
            each = -(-tiles // parts)
            assert (parts - 1) * each < tiles <= parts * each


def test_any_number_of_crops_is_served(kernels, device) -> None:
    assert kernels.refuses(Problem("pair_mlp", device.type, frozenset([FP32]), 0, 256)) is None
    assert "float64" in kernels.refuses(
        Problem("pair_mlp", device.type, frozenset([torch.float64]), 0, 256)
    )


@pytest.mark.parametrize("form", ["logistic", "difference"])
def test_the_module(form, device) -> None:
    """Objective, ℓa, all gradients and running statistics, against the reference."""
    torch.manual_seed(0)
    plain = LocalAffinity(12, (20, 9), backend="reference").to(device)
    ours = copy.deepcopy(plain)
    ours.backend = "triton"
    local = torch.randn(3, 4, 12, device=device)
    results = []
    for module in (ours, plain):
        leaf = local.clone().requires_grad_()
        torch.manual_seed(1)
        objective = module.objective(leaf, form)
        objective.backward()
        loss = module(leaf)
        loss.square().sum().backward()
        results.append(
            [objective.detach(), loss.detach(), leaf.grad]
            + [parameter.grad for parameter in module.parameters()]
            + [buffer for name, buffer in module.named_buffers() if "running" in name]
        )
    for got, right in zip(*results, strict=True):
        torch.testing.assert_close(got, right, rtol=2e-4, atol=2e-6)


def test_the_module_in_eval_mode(device) -> None:
    torch.manual_seed(0)
    plain = LocalAffinity(12, (20, 9), backend="reference").to(device)
    plain(torch.randn(3, 4, 12, device=device))
    plain.eval().requires_grad_(False)
    ours = copy.deepcopy(plain)
    ours.backend = "triton"
    leaves = [torch.randn(2, 3, 12, device=device).requires_grad_()]
    leaves.append(leaves[0].detach().clone().requires_grad_())
    for module, leaf in zip((ours, plain), leaves, strict=True):
        module(leaf).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-4, atol=1e-6)
