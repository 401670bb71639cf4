"""Checkpoints that survive a kill at any moment, and random states that continue bit for bit."""

import contextlib
import io
import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from errors import UserError, reason, writing

FORMAT = 2


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call write(file) so that `path` afterwards holds either the old content or all of the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # The data must be on disk before the name points to them.
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # Half a file would keep a full disk full.
            temporary.unlink()
        raise
    if os.name == "posix":  # Only an fsync of the folder makes the new name last.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    content = io.BytesIO()  # Torch's writer does not say which error of a file stopped it.
    torch.save({"format": FORMAT, **state}, content)
    with writing(path):
        write_atomically(path, lambda file: file.write(content.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Tensors and plain values only: a checkpoint from elsewhere cannot run code."""
    try:
        if not path.is_file():
            raise ValueError("it is a folder" if path.is_dir() else "it is no plain file")
        with zipfile.ZipFile(path) as file:  # Torch compares no checksum.
            damaged = file.testzip()
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # What is cut or changed somewhere raises nearly anything.
        raise UserError(
            f"{path} is not a readable checkpoint ({reason(error)}). Remove it to start again."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"{path}: checkpoint format {found!r}; want {FORMAT}. It comes from another version of "
            "this trainer: start again with another --out."
        )
    return state


def random_states() -> dict[str, Any]:
    """Python's, NumPy's and torch's global generators, as tensors and plain values."""
    version, keys, gauss = random.getstate()
    kind, array, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(keys), gauss],
        "numpy": [kind, torch.from_numpy(array.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The last thing to do before training goes on: any draw in between would shift the run."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, array, *rest = states["numpy"]
    np.random.set_state((kind, array.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])
