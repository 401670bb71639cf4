"""InfoNCE on problems that Hypothesis draws: shapes, dtypes, strides, temperatures together."""

import pytest
import torch

from logo_kernels import info_nce
from oracles import eager_info_nce, pairwise_info_nce
from support import EPS, LAYOUTS, error, losses_and_gradient, queries_and_keys

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(
    max_examples=12, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_problem(backend, data):
    name, device = backend
    rows = data.draw(st.integers(1, 40), "N")
    positives = data.draw(st.integers(1, 8), "P")
    negatives = data.draw(st.integers(1, 150), "K")
    dim = data.draw(st.integers(1, 70), "D")
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    # A logit moves by EPS/τ when its crop is rounded. Where that is near one, rounding decides what
    # wins the softmax, and two right answers differ by the gradient's whole size.
    sharp = [1e-3, 0.02] if dtype == torch.float32 else []
    temperature = data.draw(st.sampled_from([*sharp, 0.07, 0.2, 1.0, 100.0]))
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    seed = data.draw(st.integers(0, 1000))
    q, k, n = queries_and_keys(rows, positives, negatives, dim, dtype, seed)
    upstream = torch.linspace(-1, 2, rows * positives).view(rows, positives)
    exact = losses_and_gradient(pairwise_info_nce, q, k, n, temperature, upstream, torch.float64)
    peer = losses_and_gradient(eager_info_nce, q, k, n, temperature, upstream)
    arranged = layout(q.unsqueeze(1))[:, 0], layout(k), layout(n.unsqueeze(1))[:, 0]
    ours = losses_and_gradient(
        info_nce, *arranged, temperature, upstream, device=device, backend=name
    )
    # Of the logits' last digits, in fp32, as a share of a loss or gradient.
    moved = 4 * EPS[torch.float32] * max(1, 1 / temperature)
    for value, by_eager, by_oracle in zip(ours, peer, exact, strict=True):
        # D = 1, or a sharp softmax: the terms of a gradient, of size 1/(τ‖q‖), cancel
        size = float(by_oracle.abs().max()) + 1 / float(q.double().norm(dim=1).min()) / temperature
        moves = moved * max(4, float(by_oracle.abs().max()))
        allowed = 2 * error(by_eager, by_oracle) + EPS[dtype] * size + moves
        assert error(value, by_oracle) <= allowed
