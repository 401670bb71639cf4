"""Every GPU kernel once on small problems with odd sizes, checked: what compute-sanitizer watches.

python benchmarks/small_cases.py triton      a backend, on the GPU

Inputs are made, and results checked, on the CPU: of what runs on the GPU, all but copies is ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import inputs
import peers
from cases import CosineCase, SimilarityCase
from gate import TOLERANCE, Expected
from logo_kernels import block_cosine_similarity, info_nce, logo_loss, pair_layers
from logo_kernels.backends import BACKENDS
from logo_kernels.backends.pairs import LINKS
from logo_kernels.backends.protocol import scale_factor


class Problem(NamedTuple):
    """A case with what benchmarks do not vary."""

    case: CosineCase | SimilarityCase
    reduction: str = "mean"
    extreme: bool = False  # norms that no sum of squares in fp32 survives, and zero rows

    @property
    def id(self) -> str:
        return f"{self.case.id}-{self.reduction}{'-extreme' * self.extreme}"


class Scaling(NamedTuple):
    """What backward multiplies by: gradient [B, V, D], upstream [] or [B], row_scale [B, V]."""

    images: int
    rows: int
    dim: int
    dtype: str
    per_image: bool
    per_row: bool

    @property
    def id(self) -> str:
        return f"scale-{self.images}x{self.rows}x{self.dim}-{self.dtype}"


DTYPES = ("float32", "bfloat16", "float16")
# Sizes that fill no tile: rows and columns beyond the data must be masked.
COSINE = [
    CosineCase(*size, dtype, "sanitizer", view_major=view_major, features=features)
    for dtype in DTYPES
    for size, view_major, features in (
        ((3, 2, 3, 37), False, False),
        ((2, 2, 8, 129), True, False),
        ((1, 2, 2, 2050), False, True),
        ((2, 1, 17, 64), True, True),
    )
]
SIMILARITY = [
    SimilarityCase(*size, dtype, "sanitizer")
    for dtype in DTYPES
    for size in ((3, 5, None, 37), (2, 9, 2, 130))
]
SCALE = [
    Scaling(3, 5, dim, dtype, per_image, per_row)
    for dtype, dim, (per_image, per_row) in product(
        DTYPES, (48, 33), ((False, False), (False, True), (True, True))
    )
]
# What csrc/cuda does another way: whole images in shared memory or chunks of them, of which none
# may divide D; rows that are copied as they are or converted; norms that have rows scaled.
CUDA = [
    Problem(CosineCase(*size, dtype, "sanitizer", view_major, features), reduction, extreme)
    for dtype in DTYPES
    for size, view_major, features, reduction, extreme in (
        ((3, 2, 4, 64), False, False, "none", False),  # resident, aligned
        ((3, 2, 4, 64), True, True, "mean", False),
        ((4, 2, 4, 33), False, True, "none", True),  # resident, converted
        ((4, 2, 4, 64), True, False, "mean", True),
        ((2, 2, 16, 4096), False, False, "mean", False),  # 20 rows: chunks, with targets
        ((2, 2, 16, 4096), True, False, "none", True),
        ((1, 2, 16, 4099), False, False, "mean", False),  # ragged chunks, converted
        ((1, 1, 1, 65536), False, False, "mean", False),  # few rows, long
    )
] + [
    Problem(SimilarityCase(*size, dtype, "sanitizer", view_major), extreme=extreme)
    for dtype in DTYPES
    for size, view_major, extreme in (
        ((3, 4, None, 64), False, False),
        ((3, 4, 3, 64), True, True),
        ((4, 3, 2, 33), False, True),
        ((1, 2, None, 65536), False, False),
        ((2, 14, 6, 4096), True, True),
    )
] + [
    # Two stages of an image fill a multiprocessor, and there are more images than those: blocks
    # go on to a next image, and the last one adds up what all have found.
    Problem(CosineCase(160, 2, 1, 4096, "float32", "sanitizer")),
]  # fmt: skip


class Contrast(NamedTuple):
    """InfoNCE of queries [N, D], positives [N, 2, D] and negatives [K, D], of their own dtype."""

    rows: int
    negatives: int
    dim: int
    dtype: str
    of_negatives: str
    temperature: float = 0.2
    extreme: bool = False

    @property
    def id(self) -> str:
        size = f"{self.rows}x{self.negatives}x{self.dim}"
        return f"info_nce-{size}-{self.dtype}-{self.of_negatives}-{self.temperature}" + (
            "-extreme" * self.extreme
        )


# Ragged tiles, several of them; rows that are converted; a running maximum; more than one tile of
# columns; each pair of dtypes that has products of its own.
CONTRAST = [
    Contrast(rows, negatives, dim, dtype, of_negatives, temperature, extreme)
    for dtype, of_negatives in (
        *((dtype, dtype) for dtype in DTYPES), ("float32", "bfloat16"), ("float32", "float16"),
    )
    for rows, negatives, dim, temperature, extreme in (
        (70, 300, 64, 0.2, False),
        (9, 130, 33, 0.01, True),
        (5, 70, 300, 0.2, False),
    )
]  # fmt: skip


class Pairs(NamedTuple):
    """The pair stage of a [B, L, H] and c on one side of the product, y [P, H'] on the other."""

    images: int
    crops: int
    width: int
    width_of_y: int
    roll: int
    link: str
    dtype: str

    @property
    def id(self) -> str:
        size = f"{self.images}x{self.crops}x{self.width}x{self.width_of_y}"
        return f"pair_mlp-{size}-{self.roll}-{self.link}-{self.dtype}"


# Ragged tiles, one and several of columns; wide accesses and narrow ones; crops that one tile does
# not hold; pairs of one image that programs share.
PAIRS = [
    Pairs(*size, roll, link, dtype)
    for dtype in DTYPES
    for size, roll, link in (
        ((3, 3, 33, 20), 1, "softplus"),
        ((5, 8, 264, 64), 0, "softplus_negated"),
        ((2, 13, 70, 300), 1, "identity"),
        ((1, 36, 8, 3), 0, "softplus"),
    )
]


def problems(backend: str) -> list[Problem]:
    shared = [Problem(case) for case in (*COSINE, *SIMILARITY)]
    return shared if backend == "triton" else shared + CUDA


def extremes(crops: Tensor) -> Tensor:
    """Factors [B, V, 1] for rows of every second image; powers of two, so that nothing rounds.

    fp16 has small rows and no large ones, whose gradients it could not hold.
    """
    small, large = (2.0**-10, 1.0) if crops.dtype == torch.float16 else (2.0**-100, 2.0**100)
    cycle = torch.tensor([1.0, small, 0.0, large])
    image, row = torch.arange(crops.shape[0]), torch.arange(crops.shape[1])
    factors = cycle[(image[:, None] // 2 + row) % 4]
    factors[::2] = 1
    return factors.unsqueeze(-1).to(crops)


def difference(problem: Problem, backend: str, device: str) -> str | None:
    """Where the backend is wrong, or None."""
    case, upstream = problem.case, None
    function: Callable[..., Tensor]
    if isinstance(case, CosineCase):
        crops = inputs.cosine_inputs(case, "cpu")
        function = partial(cosine, reduction=problem.reduction)
        if problem.reduction == "none":
            upstream = torch.linspace(-1, 2, case.images)
    else:
        crops, upstream = inputs.similarity_inputs(case, "cpu")
        function = block_cosine_similarity
    leaves, constants = crops.blocks()
    factors = [extremes(block) if problem.extreme else None for block in (*leaves, *constants)]

    def run(*blocks: Tensor, backend: str, device: str) -> Tensor:
        given = [
            (block if factor is None else block * factor.to(block.dtype)).to(device)
            for block, factor in zip(blocks, factors, strict=True)
        ]
        return function(*given, backend=backend).cpu()

    expected = Expected(crops, partial(run, backend="reference", device="cpu"), upstream)
    return expected.difference(crops, partial(run, backend=backend, device=device), upstream)


def cosine(x: Tensor, y: Tensor, *rest: Tensor, reduction: str, backend: str) -> Tensor:
    *features, t = rest
    return logo_loss(
        x, y, t,
        repulsion_features=features[0] if features else None,
        repulsion_weight=peers.REPULSION,
        reduction=reduction,
        backend=backend,
    )  # fmt: skip


def scaling_difference(case: Scaling, backend: str, device: str) -> str | None:
    """The same of the kernel that backward launches, which auto chooses, by this backend."""
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    gradient = torch.randn(case.images, case.rows, case.dim).to(dtype)
    upstream = torch.linspace(0.5, 2, case.images) if case.per_image else torch.tensor(1.7)
    columns = slice(2, 2 + case.rows)  # of a greater tensor, as autograd gives them
    numbers = torch.rand(case.images, case.rows + 4) + 0.5
    row_scale = numbers[:, columns] if case.per_row else None
    wanted = (gradient.double() * scale_factor(upstream, row_scale).double()).to(dtype)
    scaled = (
        BACKENDS[backend]
        .scale_(
            gradient.to(device, copy=True),
            upstream.to(device),
            numbers.to(device)[:, columns] if case.per_row else None,
        )
        .cpu()
    )
    error = ((scaled.double() - wanted.double()).norm() / wanted.double().norm()).item()
    return None if error <= TOLERANCE[dtype] else f"off by {error:.1e} (relative)"


def contrast_difference(case: Contrast, backend: str, device: str) -> str | None:
    """The same of InfoNCE, also with the other images as negatives."""
    torch.manual_seed(0)
    q, k = torch.randn(case.rows, 1, case.dim), torch.randn(case.rows, 2, case.dim)
    n = torch.randn(1, case.negatives, case.dim)
    if case.extreme:
        q, n = q.transpose(0, 1), n.to(getattr(torch, case.of_negatives))
        q, n = (q * extremes(q)).transpose(0, 1), n * extremes(n.transpose(0, 1)).transpose(0, 1)
    q, k = q.to(getattr(torch, case.dtype)), k.to(getattr(torch, case.dtype))
    n = n[0].to(getattr(torch, case.of_negatives))
    crops = inputs.Inputs([q.requires_grad_()], [k, n], False)

    def run(q: Tensor, k: Tensor, n: Tensor, backend: str, device: str) -> Tensor:
        q, k, n = (v.to(device) for v in (q, k, n))
        with_queue = info_nce(q[:, 0], k, n, temperature=case.temperature, backend=backend).sum()
        with_batch = logo_loss(
            q, q * 0.5, k[:, :1],
            similarity="info_nce", negatives="batch", temperature=case.temperature, affinity=None,
            backend=backend,
        )  # fmt: skip
        return (with_queue / case.rows + with_batch).cpu()

    expected = Expected(crops, partial(run, backend="reference", device="cpu"))
    return expected.difference(crops, partial(run, backend=backend, device=device))


class HiddenLayer(torch.autograd.Function):
    """The affinity's first layer by itself: x [P, H] of what the first product would give."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, c: Tensor, norm: nn.BatchNorm1d, roll: int, backend: str
    ) -> Tensor:
        parameters = norm.weight.detach(), norm.bias.detach()
        state = pair_layers.state(norm)
        x, folded, ctx.seen = pair_layers.hidden_layer(a, c, *parameters, state, roll, backend)
        ctx.save_for_backward(a, c, folded)
        ctx.roll, ctx.backend = roll, backend
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_a, to_c, _ = pair_layers.hidden_gradient(
            grad.contiguous(), *ctx.saved_tensors, ctx.seen, ctx.roll, ctx.backend
        )
        return to_a, to_c, None, None, None


class OutputLayer(torch.autograd.Function):
    """The second one by itself: [B] of what the second product would give."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        norm: nn.BatchNorm1d,
        last: nn.Linear,
        pairs: int,
        link: int,
        backend: str,
    ) -> Tensor:
        weight = last.weight.detach()[0]
        value, slope, folded, ctx.seen = pair_layers.output_layer(
            y, norm.weight.detach(), norm.bias.detach(), pair_layers.state(norm),
            weight, last.bias.detach(), pairs, link, backend,
        )  # fmt: skip
        ctx.save_for_backward(y, folded, weight, slope)
        ctx.backend = backend
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_y, _ = pair_layers.output_gradient(*ctx.saved_tensors, grad, ctx.seen, True, ctx.backend)
        return to_y, None, None, None, None, None


def pairs_difference(case: Pairs, backend: str, device: str) -> str | None:
    """The same of the eight kernels of the pair stage, batch norm in training mode."""
    torch.manual_seed(0)
    pairs = case.crops * (case.crops - 1)
    a, c = torch.randn(2, case.images, case.crops, case.width)
    y = torch.randn(case.images * pairs, case.width_of_y)
    leaves = [v.to(getattr(torch, case.dtype)).requires_grad_() for v in (a, c, y)]
    first, second = nn.BatchNorm1d(case.width), nn.BatchNorm1d(case.width_of_y)
    last = nn.Linear(case.width_of_y, 1)
    for norm in (first, second):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    def plain(a: Tensor, c: Tensor, y: Tensor) -> Tensor:
        norm, other_norm, layer = (deepcopy(m).double() for m in (first, second, last))
        i, j = (~torch.eye(case.crops, dtype=torch.bool)).nonzero(as_tuple=True)
        x = norm((a[:, i] + c.roll(-case.roll, 0)[:, j]).flatten(0, 1)).relu()
        f = layer(other_norm(y).relu()).view(case.images, pairs)
        f = {"identity": f, "softplus": softplus(f), "softplus_negated": softplus(-f)}[case.link]
        return torch.cat([x.flatten(), f.mean(1)])

    def ours(a: Tensor, c: Tensor, y: Tensor) -> Tensor:
        norm, other_norm, layer = (deepcopy(m).to(device) for m in (first, second, last))
        x = HiddenLayer.apply(a.to(device), c.to(device), norm, case.roll, backend)
        value = OutputLayer.apply(y.to(device), other_norm, layer, pairs, LINKS[case.link], backend)
        return torch.cat([x.cpu().flatten().to(value.dtype), value.cpu()])

    crops = inputs.Inputs(leaves, [], False)
    upstream = torch.linspace(-1, 2, case.images * (pairs * case.width + 1))
    return Expected(crops, plain, upstream).difference(crops, ours, upstream)


def differences(backend: str, device: str) -> Iterator[tuple[str, str | None]]:
    for problem in problems(backend):
        yield problem.id, difference(problem, backend, device)
    for case in SCALE:
        yield case.id, scaling_difference(case, backend, device)
    for contrast in CONTRAST:
        yield contrast.id, contrast_difference(contrast, backend, device)
    if BACKENDS[backend].pair_stage is not None:
        for pairs in PAIRS:
            yield pairs.id, pairs_difference(pairs, backend, device)


def main(backend: str, device: str) -> int:
    count = wrong = 0
    for name, found in differences(backend, device):
        count += 1
        if found is not None:
            wrong += 1
            print(f"{name}: {found}")
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{backend}: {count} cases, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], "cuda" if torch.cuda.is_available() else "cpu"))
