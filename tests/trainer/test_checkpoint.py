"""A checkpoint is whole or absent, holds no code, and brings every random state back."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoint
from errors import UserError


def test_round_trip(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 3, "weights": torch.arange(4.0), "history": [{"knn": 0.5}]})
    state = checkpoint.load(path)
    assert state["step"] == 3
    assert state["history"] == [{"knn": 0.5}]
    assert torch.equal(state["weights"], torch.arange(4.0))
    assert os.listdir(tmp_path) == ["c.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"step": 1})

    def fail_half_way(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(path, fail_half_way)
    assert checkpoint.load(path)["step"] == 1


def test_the_content_is_on_disk_before_the_name(tmp_path, monkeypatch):
    """Fsync of the whole temporary file, then replace, then fsync of the folder."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor):
        calls.append(
            ("fsync", os.fstat(descriptor).st_size, os.path.isdir(f"/dev/fd/{descriptor}"))
        )
        fsync(descriptor)

    def spy_replace(source, target):
        calls.append(("replace", os.path.getsize(source), target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    path = tmp_path / "c"
    checkpoint.write_atomically(path, lambda file: file.write(b"x" * 10_000))
    assert calls[0] == ("fsync", 10_000, False)
    assert calls[1] == ("replace", 10_000, path)
    assert calls[2][0] == "fsync"
    assert len(calls) == 3


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"hello"]
)
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "c.pt"
    checkpoint.save(path, {"weights": torch.zeros(1000)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"c\.pt is not a readable checkpoint"):
        checkpoint.load(path)


def test_a_checkpoint_cut_anywhere_is_refused(tmp_path):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    checkpoint.save(whole, {"config": {}, "network": {str(i): torch.randn(20) for i in range(4)}})
    content = whole.read_bytes()
    for size in [*range(0, len(content), 41), len(content) - 1]:
        cut.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"cut\.pt is not a readable checkpoint"):
            checkpoint.load(cut)


def test_a_bit_that_fell_over_is_refused_or_not_in_the_numbers(tmp_path):
    """The file's own checksums see to it: what loads is what was saved."""
    whole, changed = tmp_path / "whole.pt", tmp_path / "changed.pt"
    weights = torch.randn(50)
    checkpoint.save(whole, {"weights": weights})
    content = whole.read_bytes()
    refused = 0
    for place in range(0, len(content), 23):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        changed.write_bytes(damaged)
        try:
            state = checkpoint.load(changed)
        except UserError:
            refused += 1
        else:
            assert torch.equal(state["weights"], weights), place
    assert refused > 20


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: None, os.mkfifo])
def test_what_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "c.pt")


def test_a_failed_write_leaves_no_half_file(tmp_path):
    def fail(file):
        file.write(b"x" * 100)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write_atomically(tmp_path / "c.pt", fail)
    assert os.listdir(tmp_path) == []


def test_another_format_is_refused(tmp_path):
    torch.save({"format": 0}, tmp_path / "old.pt")
    torch.save([1], tmp_path / "list.pt")
    for name in ("old.pt", "list.pt"):
        with pytest.raises(UserError, match="format"):
            checkpoint.load(tmp_path / name)


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        torch.rand(()).item(),
        torch.randn(()).item(),
    ]


def test_random_states_continue(tmp_path):
    draw()  # an odd number of Gaussians: the second half of a pair is part of the state
    checkpoint.save(tmp_path / "c.pt", {"random": checkpoint.random_states()})
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    checkpoint.restore_random_states(checkpoint.load(tmp_path / "c.pt")["random"])
    assert [draw(), draw()] == expected
