"""The trainer is plain scripts that import each other: its folder goes on sys.path."""

import sys
from pathlib import Path

import pytest
import torch

TRAINER = Path(__file__).resolve().parents[2] / "python"
sys.path.insert(0, str(TRAINER))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trainer_folder() -> Path:
    return TRAINER
