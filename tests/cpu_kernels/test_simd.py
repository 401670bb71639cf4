"""Which instruction sets there are, and which of them is used."""

import pytest

from logo_kernels import available_backends
from logo_kernels.backends.extension import extension


def test_cpu_backend_is_built():
    """Most tests skip a backend that is not there; this one must be."""
    assert available_backends()["cpu"] is None
    assert extension.simds()[-1] == "portable"


def test_the_one_that_is_asked_for_is_used(cpu):
    for simd in extension.simds():
        extension.use_simd(simd)
        assert extension.current_simd() == simd


def test_unknown_simd_is_refused():
    with pytest.raises(ValueError, match="avx1024"):
        extension.use_simd("avx1024")
