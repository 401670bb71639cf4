"""Fashion-MNIST: its four files are read whole or refused, and scenes of it are honest."""

import gzip
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import fashion
import train
from config import Config, validate, with_preset
from errors import UserError

IMAGES, LABELS = fashion.TRAIN


def idx(content: np.ndarray) -> bytes:
    sizes = struct.pack(f">{1 + content.ndim}I", 0x0800 + content.ndim, *content.shape)
    return sizes + content.tobytes()


def write_fashion(root: Path, train: int = 40, test: int = 20, suffix: str = ".gz") -> Path:
    """Garments that tell themselves apart: kind k is k bright rows, the n-th one n in a corner."""
    root.mkdir(parents=True)
    for split, count, first in ((fashion.TRAIN, train, 0), (fashion.TEST, test, 100)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for n, label in enumerate(labels):
            images[n, 4 : 4 + label, 4:24] = 200
        images[:, 0, 0] = first + np.arange(count)
        for name, content in zip(split, (images, labels), strict=True):
            raw = idx(content)
            (root / (name + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)
    return root


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_the_files_are_read_as_they_stand(tmp_path, suffix, below):
    write_fashion(tmp_path / "f" / below, suffix=suffix)
    garments = data.load_fashion(tmp_path / "f")
    assert garments.train_images.shape == (40, 1, 28, 28)
    assert garments.train_images.dtype == torch.uint8
    assert garments.train_images[:, 0, 0, 0].tolist() == list(range(40))
    assert garments.test_images[:, 0, 0, 0].tolist() == list(range(100, 120))
    assert garments.train_labels.argmax(1).tolist() == [n % 10 for n in range(40)]
    assert garments.test_labels.sum(1).tolist() == [1] * 20
    assert not garments.multi_label
    assert garments.classes[9] == "ankle boot"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix, name):
    write_fashion(tmp_path / "f", suffix=suffix)
    file = tmp_path / "f" / (name + suffix)
    content = file.read_bytes()
    step = max(1, len(content) // 60)
    for size in [*range(20), *range(20, len(content), step), len(content) - 1]:
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{name}.*: not a file of Fashion-MNIST"):
            data.load_fashion(tmp_path / "f")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, b"", "it ends after 0 bytes"),
        (IMAGES, struct.pack(">2I", 0x803, 40), "it ends after 8 bytes"),
        (IMAGES, gzip.compress(b"x", mtime=0), "it begins with 0x1f8b0800; want 0x00000803"),
        (IMAGES, idx(np.zeros(40, np.uint8)), "it begins with 0x00000801; want 0x00000803"),
        (LABELS, idx(np.zeros((4, 28, 28), np.uint8)), "0x00000803; want 0x00000801"),
        (IMAGES, idx(np.zeros((40, 28, 32), np.uint8)), "images of 28 x 32; want 28 x 28"),
        (IMAGES, idx(np.zeros((0, 28, 28), np.uint8)), "it counts 0 items; want 1 to"),
        (IMAGES, struct.pack(">4I", 0x803, 2**32 - 1, 28, 28), "it counts 4294967295 items"),
        (LABELS, idx(np.zeros(40, np.uint8)) + b"!", "it goes on after the 40 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_what_is_no_such_file_is_refused(tmp_path, name, content, message):
    write_fashion(tmp_path / "f", suffix="")
    (tmp_path / "f" / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not a file of Fashion-MNIST .*{message}"):
        data.load_fashion(tmp_path / "f")


def test_a_gz_that_is_no_gzip_is_refused(tmp_path):
    write_fashion(tmp_path / "f")
    file = tmp_path / "f" / f"{IMAGES}.gz"
    file.write_bytes(gzip.decompress(file.read_bytes()))
    with pytest.raises(UserError, match=r"ubyte\.gz: not a file of .*Not a gzipped file"):
        data.load_fashion(tmp_path / "f")


def test_a_bit_that_fell_over_in_a_gz_is_refused(tmp_path):
    write_fashion(tmp_path / "f")
    file = tmp_path / "f" / f"{IMAGES}.gz"
    content = bytearray(file.read_bytes())
    content[-6] ^= 1  # the checksum of what it holds
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"ubyte\.gz: not a file of Fashion-MNIST .*CRC"):
        data.load_fashion(tmp_path / "f")


def test_labels_and_images_of_different_sets_are_refused(tmp_path):
    write_fashion(tmp_path / "f", suffix="")
    (tmp_path / "f" / LABELS).write_bytes(idx(np.zeros(39, np.uint8)))
    with pytest.raises(UserError, match="40 images, but 39 labels in train-labels"):
        data.load_fashion(tmp_path / "f")
    (tmp_path / "f" / LABELS).write_bytes(idx(np.full(40, 10, np.uint8)))
    with pytest.raises(UserError, match="a label of 10; want 0 to 9"):
        data.load_fashion(tmp_path / "f")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        data.load_fashion(tmp_path / "f")
    write_fashion(tmp_path / "f")
    (tmp_path / "f" / f"{LABELS}.gz").unlink()
    with pytest.raises(UserError, match=f"no file {LABELS}, with .gz or without"):
        data.load_fashion(tmp_path / "f")


def test_scenes_of_garments(tmp_path):
    root = write_fashion(tmp_path / "f")
    before = torch.get_rng_state()
    scenes = data.load_fashion_scenes(root, 12, 6, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert scenes.train_images.shape == (12, 1, 84, 84)
    assert scenes.test_labels.shape == (6, 10)
    assert scenes.multi_label
    assert set(scenes.train_labels.sum(1).tolist()) <= {1.0, 2.0, 3.0}
    again, other = (data.load_fashion_scenes(root, 12, 6, seed=seed) for seed in (1, 2))
    assert torch.equal(scenes.train_images, again.train_images)
    assert torch.equal(scenes.test_images, again.test_images)
    assert not torch.equal(scenes.train_images, other.train_images)


def test_no_garment_is_in_training_and_in_test_scenes(tmp_path, monkeypatch):
    given = []

    def record(glyphs, labels, count, size, generator):
        given.append((glyphs[:, 0, 0] * 255).round().tolist())
        return torch.zeros(count, 1, size, size, dtype=torch.uint8), torch.zeros(count, 10)

    monkeypatch.setattr(data, "compose_scenes", record)
    data.load_fashion_scenes(write_fashion(tmp_path / "f"), 1, 1, seed=0)
    assert given == [list(range(40)), list(range(100, 120))]


def test_sizes_follow_the_data_set_unless_they_are_given(monkeypatch):
    def parsed(*words: str) -> Config:
        configs = []
        monkeypatch.setattr(sys, "argv", ["train.py", *words])
        monkeypatch.setattr(train, "run", lambda config, _: configs.append(config))
        train.main()
        return configs[0]

    def sizes(config: Config) -> tuple[int, int, int]:
        return config.image_size, config.global_size, config.local_size

    scenes = ("--dataset", "fashion-scenes", "--data", "d")
    assert sizes(parsed(*scenes)) == (84, 56, 42)
    assert sizes(parsed(*scenes, "--local-size", "24")) == (84, 56, 24)
    assert sizes(parsed("--dataset", "fashion-mnist", "--data", "d")) == (28, 28, 20)
    assert sizes(parsed()) == sizes(Config()) == (48, 32, 24)
    published = parsed(*scenes, "--preset", "paper")
    assert sizes(published) == (84, 56, 42)
    assert published.dim == with_preset("paper", "simsiam-logo").dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--dataset fashion-scenes needs --data"),
        ({"dataset": "fashion-mnist"}, "--dataset fashion-mnist needs --data"),
        ({"scenes": (4, 4)}, "--scenes: got 4 4"),
        ({"scenes": (8, 4)}, "--batch-size: got 64 for 8 training images"),
        ({"scenes": (10**9, 5), "data": Path("d")}, "--scenes, --image-size: take more than"),
    ],
)
def test_settings_are_checked_before_files_are_read(changes, message):
    with pytest.raises(UserError, match=message):
        validate(replace(Config(dataset="fashion-scenes"), **changes))


def test_a_run_on_each(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "linear_metric", lambda *_: 0.5)  # by far the longest part
    write_fashion(tmp_path / "f")
    small = Config(
        data=tmp_path / "f", scenes=(16, 8), batch_size=8, epochs=1, dim=16, bottleneck=8
    )
    for dataset, image_size in (("fashion-mnist", 28), ("fashion-scenes", 84)):
        out = tmp_path / dataset
        train.run(replace(small, dataset=dataset, image_size=image_size, out=out))
        assert f"{image_size} x {image_size}, 10 classes" in capsys.readouterr().out
        assert (out / "crops.png").stat().st_size > 1000
