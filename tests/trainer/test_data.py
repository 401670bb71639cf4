"""Scenes are deterministic and honest; the readers refuse bad data and say why."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import cifar as cifar_file
import data
from errors import UserError


def same(a: data.ImageData, b: data.ImageData) -> bool:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_scenes_depend_on_the_seed_and_on_nothing_else():
    first = data.load_scenes(12, 8, seed=3)
    torch.manual_seed(99)
    torch.rand(7)
    assert same(first, data.load_scenes(12, 8, seed=3))
    assert not torch.equal(first.train_images, data.load_scenes(12, 8, seed=4).train_images)


def test_scenes_leave_the_global_random_state_alone():
    before = torch.get_rng_state()
    data.load_scenes(3, 3, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_scenes_shapes_and_labels():
    scenes = data.load_scenes(40, 20, seed=0)
    assert scenes.train_images.shape == (40, 1, scenes.size, scenes.size)
    assert scenes.train_images.dtype == torch.uint8
    assert scenes.test_labels.shape == (20, 10)
    kinds = scenes.train_labels.sum(1)
    assert set(scenes.train_labels.unique().tolist()) == {0.0, 1.0}
    assert kinds.min() == 1
    assert kinds.max() == 3
    assert scenes.multi_label
    assert scenes.classes[7] == "7"


def test_no_digit_is_in_training_and_in_test_scenes(monkeypatch):
    given = []

    def record(glyphs, labels, count, size, generator):
        given.append(glyphs)
        return torch.zeros(count, 1, size, size, dtype=torch.uint8), torch.zeros(count, 10)

    monkeypatch.setattr(data, "compose_scenes", record)
    data.load_scenes(1, 1, seed=0)
    train, test = ({g.numpy().tobytes() for g in glyphs} for glyphs in given)
    assert len(train) + len(test) == len(np.unique(load_digits().data, axis=0))
    assert not train & test


def test_mean_and_std_are_those_of_the_training_pixels():
    scenes = data.load_scenes(30, 5, seed=0)
    pixels = scenes.train_images.double() / 255
    assert scenes.mean.item() == pytest.approx(pixels.mean().item(), abs=1e-6)
    assert scenes.std.item() == pytest.approx(pixels.std(correction=0).item(), abs=1e-6)
    normalised = scenes.normalise(scenes.train_images)
    assert normalised.mean().abs() < 1e-4
    assert (normalised.std() - 1).abs() < 1e-3


# ----------------------------------------------------------------------------------------- CIFAR-10


def write_cifar(root: Path, per_batch: int = 4) -> np.ndarray:
    """A small folder in CIFAR-10's python version; returns the pixel rows of data_batch_1."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    first = None
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        first = rows if first is None else first
        batch = {b"data": rows, b"labels": [i % 10 for i in range(per_batch)], b"batch_label": b"x"}
        (root / name).write_bytes(pickle.dumps(batch, protocol=2))
    return first


def test_cifar10_reads_channels_rows_columns(tmp_path):
    rows = write_cifar(tmp_path / "cifar-10-batches-py")
    cifar = data.load_cifar10(tmp_path)  # the parent folder will do
    assert cifar.train_images.shape == (20, 3, 32, 32)
    assert cifar.test_images.shape == (4, 3, 32, 32)
    # Row n holds 1024 red, then 1024 green, then 1024 blue values, each row by row.
    assert cifar.train_images[2, 1, 5, 7] == rows[2, 1024 + 5 * 32 + 7]
    assert cifar.train_labels.argmax(1).tolist() == [0, 1, 2, 3] * 5
    assert not cifar.multi_label
    assert cifar.colour


def rewrite(root: Path, change, protocol: int = 2) -> None:
    """Every batch, with other content, by another protocol."""
    for path in root.iterdir():
        batch = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps(change(batch), protocol=protocol))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch,
        lambda batch: {key.decode(): value for key, value in batch.items()},
        lambda batch: batch | {b"labels": np.array(batch[b"labels"])},
        lambda batch: batch | {b"labels": list(np.array(batch[b"labels"]))},
        lambda batch: batch | {b"labels": [float(label) for label in batch[b"labels"]]},
        lambda batch: batch | {b"data": batch[b"data"].astype(np.int64)},
        lambda batch: batch | {b"data": batch[b"data"].astype(np.float32)},
        lambda batch: batch | {b"data": np.asfortranarray(batch[b"data"])},
        lambda batch: batch | {b"data": batch[b"data"].reshape(-1, 3, 32, 32)},
        lambda batch: batch | {b"batch_label": b"", b"filenames": [b"a.png"]},
    ],
    ids=[
        "as it is", "text keys", "label array", "label scalars", "float labels", "int64", "float32",
        "columns", "4-d", "empty bytes",
    ],
)  # fmt: skip
def test_cifar10_by_any_protocol_and_type(tmp_path, protocol, change):
    rows = write_cifar(tmp_path / "c")
    rewrite(tmp_path / "c", change, protocol)
    cifar = data.load_cifar10(tmp_path / "c")
    assert (cifar.train_images[:4].reshape(4, -1).numpy() == rows).all()
    assert cifar.train_labels.argmax(1).tolist() == [0, 1, 2, 3] * 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b | {b"data": b[b"data"] / 255}, "data with fractions"),
        (lambda b: b | {b"data": b[b"data"].astype(int) - 1}, "data from -1 to"),
        (lambda b: b | {b"data": b[b"data"].astype(int) + 1}, "data from .* to 256"),
        (lambda b: b | {b"data": b[b"data"] * np.nan}, "data from nan"),
        (lambda b: b | {b"data": b[b"data"].astype(str)}, "data of type <U"),
        (lambda b: b | {b"data": b[b"data"].reshape(-1, 32, 32, 3)}, r"data of shape \(4, 32, 32"),
        (lambda b: b | {b"data": b[b"data"].T.copy()}, "data of shape"),
        (lambda b: b | {b"labels": [0.5] * 4}, "labels with fractions"),
        (lambda b: b | {b"labels": [-1] * 4}, "labels from -1 to -1"),
        (lambda b: b | {b"labels": np.eye(4)}, r"labels of shape \(4, 4\)"),
        (lambda b: {b"data": b[b"data"][:0], b"labels": []}, "no image"),
    ],
)
def test_cifar10_with_other_numbers_is_refused(tmp_path, change, message):
    write_cifar(tmp_path / "c")
    rewrite(tmp_path / "c", change)
    with pytest.raises(UserError, match=rf"data_batch_1: not a batch of CIFAR-10's .*{message}"):
        data.load_cifar10(tmp_path / "c")


def test_a_cifar10_batch_cut_anywhere_is_refused(tmp_path):
    write_cifar(tmp_path / "c", per_batch=1)
    file = tmp_path / "c" / "test_batch"
    content = file.read_bytes()
    for size in [*range(60), *range(60, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:size])
        with pytest.raises(UserError, match="test_batch: not a batch of CIFAR-10"):
            cifar_file.read_batch(file)


def test_cifar10_names_the_missing_files(tmp_path):
    write_cifar(tmp_path / "c")
    (tmp_path / "c" / "data_batch_3").unlink()
    with pytest.raises(UserError, match="no file data_batch_3"):
        data.load_cifar10(tmp_path / "c")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"not a pickle",
        lambda raw: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8)}),
        lambda raw: pickle.dumps({b"data": np.zeros((4, 9), np.uint8), b"labels": [0] * 4}),
        lambda raw: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [10] * 4}),
        lambda raw: pickle.dumps({b"data": np.zeros((4, 3072), np.uint8), b"labels": [1] * 3}),
        lambda raw: pickle.dumps(["a list"]),
    ],
    ids=["truncated", "text", "no labels", "row length", "label 10", "counts", "no dict"],
)
def test_cifar10_damaged_batch_is_named(tmp_path, damage):
    write_cifar(tmp_path / "c")
    file = tmp_path / "c" / "data_batch_2"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="data_batch_2: not a batch of CIFAR-10"):
        data.load_cifar10(tmp_path / "c")


class Evil:
    """Unpickling it the ordinary way would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_cifar10_does_not_run_code_from_the_file(tmp_path):
    write_cifar(tmp_path / "c")
    (tmp_path / "c" / "data_batch_1").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(UserError, match="no data batch needs"):
        data.load_cifar10(tmp_path / "c")
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------- folder


def write_images(root: Path, counts: dict[str, int], size: tuple[int, int] = (20, 12)) -> None:
    for index, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (100 * index, i, 0)).save(root / name / f"{i:02}.png")


def test_folder_holds_out_every_fifth_image(tmp_path):
    write_images(tmp_path, {"b": 10, "a": 5})
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    folder = data.load_folder(tmp_path, size=8)
    assert folder.classes == ("a", "b")
    assert folder.train_images.shape == (12, 3, 8, 8)
    assert folder.test_images.shape == (3, 3, 8, 8)
    assert folder.test_images[:, 1, 0, 0].tolist() == [4, 4, 9]  # the green value is the number
    assert folder.train_labels.argmax(1).tolist() == [0] * 4 + [1] * 8
    # "b" was written first, with red 0.
    assert folder.train_images[:, 0, 0, 0].tolist() == [100] * 4 + [0] * 8


def test_folder_with_its_own_split(tmp_path):
    write_images(tmp_path / "train", {"x": 3, "y": 2})
    write_images(tmp_path / "val", {"x": 1, "y": 1})
    folder = data.load_folder(tmp_path, size=8)
    assert len(folder.train_images) == 5
    assert len(folder.test_images) == 2


def test_folder_crops_at_the_centre(tmp_path):
    write_images(tmp_path, {"x": 5, "y": 5})
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "x" / "00.png")
    assert data.load_folder(tmp_path, size=10).train_images[0].min() == 255


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: write_images(root, {"only": 5}), "found 1 class folders"),
        (lambda root: write_images(root, {"a": 3, "b": 4}), "fewer than 5 images"),
        (
            lambda root: (
                write_images(root / "train", {"a": 1, "b": 1}),
                write_images(root / "test", {"a": 1, "c": 1}),
            ),
            r"classes \['c'\]",
        ),
    ],
    ids=["missing", "one class", "too few", "unknown class"],
)
def test_folder_that_cannot_serve(tmp_path, make, message):
    root = tmp_path / "images"
    make(root)
    with pytest.raises(UserError, match=message):
        data.load_folder(root, size=8)


@pytest.mark.parametrize("keep", [0, 40])
def test_folder_names_the_damaged_image(tmp_path, keep):
    write_images(tmp_path, {"a": 5, "b": 5})
    bad = tmp_path / "b" / "02.png"
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"b.02\.png: cannot be read as an image"):
        data.load_folder(tmp_path, size=8)
