"""Ends a process of tests whose CUDA context is lost, so that no later test fails for that."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest
import torch


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """After an illegal access every call fails in this process, and no other is harmed.

    A worker of pytest-xdist ends here and another one takes the next test. Without workers, the
    whole run ends.
    """
    result = yield
    if torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()  # what this test has launched is its own
        except RuntimeError as error:
            told = f"{item.nodeid} has lost the CUDA device to this process: {error}"
            if "PYTEST_XDIST_WORKER" not in os.environ:
                pytest.exit(told, returncode=3)
            print(told, file=sys.__stderr__, flush=True)
            os._exit(3)  # destructors would wait for the device
    return result
