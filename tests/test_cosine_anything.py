"""The cosine loss on problems that Hypothesis draws: shapes, dtypes, strides, options together."""

import pytest
import torch

from oracles import exact_cosine
from support import EPS, LAYOUTS, NO_FP64, WIDE, crops, error, run_cosine

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(
    max_examples=15, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_problem(backend, data):
    """Shapes, dtypes, strides and options drawn together."""
    images = data.draw(st.integers(1, 5), "B")
    globals_ = data.draw(st.integers(1, 4), "G")
    locals_ = data.draw(st.integers(0 if globals_ > 1 else 1, 6), "L")
    dim = data.draw(st.integers(1, 70), "D")
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    dtype = data.draw(st.sampled_from(dtypes if backend[0] in NO_FP64 else [*dtypes, *WIDE]))
    targets, features = data.draw(st.booleans()), data.draw(st.booleans())
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    pair_reduction = data.draw(st.sampled_from(["sum", "mean"]))
    weight = data.draw(st.sampled_from([0.0, 1e-4, 0.3, -1.0]))
    seed = data.draw(st.integers(0, 1000))
    problem = crops(
        images, globals_, locals_, dim, dtype, targets=targets, features=features, seed=seed
    )
    x, y, t, r = (None if v is None else layout(v) for v in problem)
    want, want_grads = exact_cosine(*problem, weight, pair_reduction, "sum")
    terms, grads = run_cosine(
        backend, x, y, t, r,
        repulsion_weight=weight, pair_reduction=pair_reduction, reduction="sum",
    )  # fmt: skip
    assert error(terms[0], want[0]) < 1e-5 * images * (1 + globals_ + locals_) ** 2
    for grad, value in zip(grads, want_grads, strict=True):
        if value is None or grad is None:
            assert grad is None or not grad.any()
            continue
        # D = 1 and near-parallel rows: the terms of a gradient, ∝ 1/‖x‖, cancel
        size = (1 + globals_ + locals_) / min(
            float(v.double().norm(dim=-1).min()) for v in problem if v is not None
        )
        # Triton multiplies bf16 rows by weights in two parts of 8 bits each.
        in_parts = backend[0] == "triton" and dtype == torch.bfloat16
        precision = 2.0**-17 if in_parts else 4 * EPS[torch.float32]
        assert error(grad, value) <= EPS[dtype] * float(value.abs().max()) + precision * size + 1e-9
