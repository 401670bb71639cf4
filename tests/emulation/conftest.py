from types import ModuleType

import pytest

from emulation.build import load


@pytest.fixture
def planted() -> ModuleType:
    module = load("planted")
    module.reset()
    return module
