"""Eq. 1 and its derivatives in numbers that neither overflow nor underflow, of 40 digits.

float64 itself is no oracle where 1/τ exceeds it, or where its own rounding of a cosine, times 1/τ,
decides which negative wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mpmath import mp, mpf
from torch import Tensor

mp.dps = 40
ZERO = mpf(0)


class Exact(NamedTuple):
    losses: list[list[mpf]]  # [N, P]
    gradient: list[list[mpf]]  # [N, D] of Σ upstream·loss to the queries
    size: list[mpf]  # [N] Σ |upstream| / (τ‖q‖): of what a gradient's numbers are sums
    to_temperature: mpf  # the gradient to τ
    undecided: mpf  # the most that any softmax gives to all but its largest


def rows_of(block: Tensor) -> list[list[mpf]]:
    return [[mpf(value) for value in row] for row in block.double().tolist()]


def norm(row: Sequence[mpf]) -> mpf:
    return mp.sqrt(sum((value * value for value in row), ZERO))


def unit(row: Sequence[mpf]) -> list[mpf]:
    length = norm(row)
    return [value / length if length else ZERO for value in row]


def dot(a: Sequence[mpf], b: Sequence[mpf]) -> mpf:
    return sum((x * y for x, y in zip(a, b, strict=True)), ZERO)


def exact_info_nce(
    q: Tensor,  # [N, D]
    k: Tensor,  # [N, P, D]
    n: Tensor,  # [K, D]
    temperature: float,
    upstream: Tensor,  # [N, P]
) -> Exact:
    tau, negatives = mpf(temperature), [unit(row) for row in rows_of(n)]
    losses, gradient, sizes = [], [], []
    to_temperature = undecided = ZERO
    for query, positives, weights in zip(rows_of(q), k, upstream.tolist(), strict=True):
        direction, length = unit(query), norm(query)
        cosines = [dot(direction, one) for one in negatives]
        of_query, delta = [], [ZERO] * len(query)
        for positive, weight in zip(rows_of(positives), weights, strict=True):
            keys = [unit(positive), *negatives]
            logits = [cosine / tau for cosine in (dot(direction, keys[0]), *cosines)]
            most = max(logits)
            powers = [mp.exp(logit - most) for logit in logits]
            total = sum(powers, ZERO)
            others = sum(powers[1:], ZERO)
            # 1 + others/power without what would cancel
            of_query.append(most - logits[0] + mp.log1p(total - 1))
            shares = [-others / total, *(power / total for power in powers[1:])]
            for share, key in zip(shares, keys, strict=True):
                delta = [d + weight * share * x for d, x in zip(delta, key, strict=True)]
            undecided = max(undecided, 1 - max(powers) / total)
        along = dot(delta, direction)
        across = [d - along * x for d, x in zip(delta, direction, strict=True)]
        losses.append(of_query)
        gradient.append([x / tau / length if length else ZERO for x in across])
        size = sum((abs(mpf(weight)) for weight in weights), ZERO)
        sizes.append(size / tau / length if length else ZERO)
        to_temperature -= along / tau / tau
    return Exact(losses, gradient, sizes, to_temperature, undecided)


def assert_within(
    got: Tensor, exact: Sequence[mpf], allowed: Sequence[mpf], limit: float, what: str
) -> None:
    """Every number is the exact one, off by no more than `allowed`; and ±limit beyond ±limit."""
    for place, (value, wanted, room) in enumerate(
        zip(got.detach().double().flatten().tolist(), exact, allowed, strict=True)
    ):
        low, high = (min(max(wanted + sign * room, -limit), limit) for sign in (-1, 1))
        assert low <= value <= high, (  # false of NaN
            f"{what}: {value:.9g} at {place}, not {mp.nstr(wanted, 9)} ± {mp.nstr(room, 3)}"
        )


def largest(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).max
