"""What kind of Triton there is, found out without importing it."""

from __future__ import annotations

import functools
import importlib.util
import os


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1.

    Asked once: Triton itself decides when a kernel is decorated, so that a later change of the
    variable would leave the two in disagreement.
    """
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
