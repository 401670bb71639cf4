"""The affinity's products against float64, by oneDNN and without it."""

from types import SimpleNamespace

import pytest
import torch

from logo_kernels.affinity import products

SHAPES = [
    (256, 128, 256),  # rows, columns, outputs: by oneDNN
    (300, 1030, 130),  # its weight's gradient too, and nothing a multiple of anything
    (4096, 16, 65),
    (5, 7, 3),  # not
    (1, 4096, 2048),
]


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN"
)


@pytest.fixture(params=[pytest.param("onednn", marks=needs_onednn), "mkl"])
def by(request, monkeypatch):
    """Which of the two, and how often oneDNN was called."""
    calls = []
    if request.param == "onednn":
        fast = products.onednn()
        assert fast is not None, "this torch declares oneDNN's product otherwise"

        def counted(*arguments):
            calls.append(arguments)
            return fast(*arguments)

        monkeypatch.setattr(products, "onednn", lambda: counted)
        monkeypatch.setattr(products, "onednn_is_ahead", lambda: True)
    else:
        monkeypatch.setattr(products, "onednn", lambda: None)
    return request.param, calls


def close(result, exact, terms):
    bound = 8 * torch.finfo(torch.float32).eps * terms**0.5
    assert result.dtype == torch.float32
    assert (result - exact).abs().max() <= bound * exact.abs().max()


@pytest.mark.parametrize(("rows", "columns", "outputs"), SHAPES)
def test_products(by, rows, columns, outputs):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator)
    weight = torch.randn(outputs, columns, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    grad = torch.randn(rows, outputs, generator=generator)
    close(products.linear(x, weight, bias), x.double() @ weight.double().T + bias, columns)
    close(products.linear(x, weight), x.double() @ weight.double().T, columns)
    close(products.input_gradient(grad, weight), grad.double() @ weight.double(), outputs)
    out = torch.full((outputs, columns + 1), torch.nan)[:, 1:]  # a part of a larger matrix
    assert products.weight_gradient(grad, x, out) is out
    close(out, grad.double().T @ x.double(), rows)
    more = torch.randn(out.shape, generator=generator)
    exact = more.double() + grad.double().T @ x.double()
    close(products.add_weight_gradient(grad, x, more), exact, rows)
    more = torch.randn(x.shape, generator=generator)
    exact = more.double() + grad.double() @ weight.double()
    close(products.add_input_gradient(grad, weight, more), exact, outputs)
    kind, calls = by
    large = rows * columns * outputs >= products.LEAST_WORK and min(rows, columns, outputs) >= 16
    wide = columns >= products.LEAST_COLUMNS
    assert len(calls) == (4 + 2 * wide if kind == "onednn" and large else 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_to_torch(by, dtype):
    x, weight = torch.ones(512, 128, dtype=dtype), torch.ones(256, 128, dtype=dtype)
    assert torch.equal(products.linear(x, weight), torch.full((512, 256), 128, dtype=dtype))
    assert by[1] == []


@needs_onednn
def test_the_users_switch(monkeypatch):
    """torch.backends.mkldnn.flags(enabled=False) leaves torch's own choice."""
    monkeypatch.setattr(products, "onednn_is_ahead", lambda: True)
    x, weight = torch.randn(512, 128), torch.randn(256, 128)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(products.linear(x, weight), torch.nn.functional.linear(x, weight))
        assert products._fast(x, 256) is None
    assert products._fast(x, 256) is not None


@needs_onednn
def test_mkl_serves_its_makers_processors(monkeypatch):
    x = torch.randn(512, 128)
    for intel in (True, False):
        monkeypatch.setattr(products, "extension", SimpleNamespace(intel=intel))
        products.onednn_is_ahead.cache_clear()
        assert (products._fast(x, 256) is None) == intel
    monkeypatch.undo()
    products.onednn_is_ahead.cache_clear()


@needs_onednn
@pytest.mark.parametrize("absent", ["build", "operator", "schema"])
def test_without_onednn(monkeypatch, absent):
    """Where torch lacks it, or declares it otherwise, its public product is used."""
    find = products.onednn.__wrapped__
    assert find() is not None
    if absent == "build":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif absent == "operator":
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    else:
        monkeypatch.setattr(products, "_SCHEMA", ["X", "W"])
    assert find() is None
