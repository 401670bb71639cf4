"""The trainer is plain scripts that import each other: its folder goes on sys.path, and this one,
for the scripts beside the tests."""

import sys
from pathlib import Path

import pytest
import torch

TRAINER = Path(__file__).resolve().parents[2] / "python"
sys.path[:0] = [str(TRAINER), str(Path(__file__).parent)]


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)
