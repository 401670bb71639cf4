"""The gate stops what is wrong, and nothing else."""

from functools import partial

import pytest
import torch

import bench_cosine
from bench_cosine import CosineCase, inputs_of, sums
from harness.gate import Expected

REFERENCE = partial(bench_cosine.loss, backend="reference")


def wrong_loss(x, y, t):
    return sums(x, y, t) + 1e-3


def wrong_repulsion(x, y, t):
    ys = torch.nn.functional.normalize(y, dim=-1).sum(1)
    return sums(x, y, t) - 1e-3 * (ys * ys).sum() / x.shape[0]


def wrong_scale(x, y, t):
    loss = sums(x, y, t)
    return loss + 1e-3 * (loss - loss.detach())


def not_a_number(x, y, t):
    return sums(x, y, t) * float("nan")


@pytest.mark.parametrize("function", [wrong_loss, wrong_repulsion, wrong_scale, not_a_number])
def test_gate_stops_what_is_wrong(function):
    crops = inputs_of(CosineCase(3, 2, 4, 32, "float32", ""), "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.difference(crops, sums) is None
    assert expected.difference(crops, function) is not None


def test_gate_takes_a_gradient_of_zero():
    # One global crop has no other: nothing pulls it, and its gradient is exactly zero.
    crops = inputs_of(CosineCase(2, 1, 3, 8, "float32", ""), "cpu")
    expected = Expected(crops, REFERENCE)
    assert expected.gradients[0].abs().max() == 0
    assert expected.difference(crops, bench_cosine.loss) is None
    assert (
        expected.difference(crops, lambda x, y, t: bench_cosine.loss(x, y, t) + x.sum()) is not None
    )
