"""The CUDA sources in the emulator: cp.async on sm_80, bulk copies on sm_90."""

import pytest

from emulation.backend import EmulatedBackend, emulate


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EmulatedBackend:
    return emulate(monkeypatch, request.param)
