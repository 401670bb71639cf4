"""The CUDA sources in the emulator: cp.async on sm_80, bulk copies on sm_90."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from emulation.backend import EmulatedBackend, emulate
from emulation.build import build


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def emulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EmulatedBackend:
    return emulate(monkeypatch, request.param)


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., EmulatedBackend]:
    """Makes a backend with a device of its own: a launcher asks for a device's limits only once."""

    def make(multiprocessors: int = 3, shared_per_block: int = 227 << 10) -> EmulatedBackend:
        path = tmp_path / f"{multiprocessors}-{shared_per_block}" / Path(build("_emulated")).name
        path.parent.mkdir()
        shutil.copy(build("_emulated"), path)
        # pybind11 makes a module of each name only once.
        name = f"{str(path.parent).replace('.', '_')}._emulated"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.settings.multiprocessors = multiprocessors
        module.settings.shared_per_block = shared_per_block
        module.settings.shared_per_multiprocessor = shared_per_block + 1024

        class Backend(EmulatedBackend):
            library = module

        return Backend()

    return make
