"""The forms in which a function is measured."""

import pytest

from bench_cosine import sums
from harness import forms


@pytest.mark.parametrize(
    ("device", "moved", "names"),
    [
        ("cpu", 1, ["a", "a, compiled"]),
        ("cuda", forms.CUDA_GRAPH_BYTES, ["a", "a, compiled", "a, compiled, CUDA graph"]),
        ("cuda", forms.CUDA_GRAPH_BYTES + 1, ["a", "a, compiled"]),
    ],
)
def test_forms(device, moved, names):
    prepared = forms.in_every_form("a", sums, device, moved)
    assert [peer.name for peer in prepared] == names
    assert [forms.split(name) for name in names] == [
        ("a", form) for form in list(forms.FORMS)[: len(names)]
    ]
