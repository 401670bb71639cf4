"""Folders as people have them: what is trained on, what is tested on, and what is said of the rest.

Right where nothing else is said: two classes a and b, nine images of each to train on.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
from errors import UserError
from folder import hold_out, list_folder


@pytest.fixture(scope="module")
def png(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("png") / "x.png"
    pixels = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


@pytest.fixture
def put(tmp_path, png):
    """Writes an image under each name."""

    def write(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
        return tmp_path

    return write


def images(*parts: str, classes: str = "ab", count: int = 9) -> list[str]:
    return [
        f"{part}/{c}/{i}.png".lstrip("/") for part in parts for c in classes for i in range(count)
    ]


def found(root: Path) -> tuple[tuple[str, ...], int, int]:
    loaded = data.load_folder(root, 8)
    return loaded.classes, len(loaded.train_images), len(loaded.test_images)


@pytest.mark.parametrize(
    "pair",
    [
        ("train", "test"), ("train", "val"), ("train", "validation"), ("train", "valid"),
        ("Train", "Test"), ("training", "testing"), ("TRAIN", "Val"), ("Training", "VALIDATION"),
    ],
)  # fmt: skip
def test_names_of_splits(put, pair):
    assert found(put(*images(*pair))) == (("a", "b"), 18, 18)


def test_an_empty_split_gives_way_to_the_next(put):
    root = put(*images("train", "val"))
    (root / "test").mkdir()
    assert found(root) == (("a", "b"), 18, 18)
    assert f"{root / 'test'}: no images, not used" in list_folder(root).notes
    (root / "test" / "a").mkdir()
    assert found(root) == (("a", "b"), 18, 18)


def test_an_unlabelled_split_gives_way_to_the_next(put):
    root = put(*images("train", "val"), *(f"test/{i}.png" for i in range(4)))
    assert found(root) == (("a", "b"), 18, 18)
    assert f"{root / 'test'}: images without class folders, not used" in list_folder(root).notes


def test_of_two_splits_to_test_on_test_is_taken_and_said(put):
    root = put(*images("train", "val"), *images("test", count=3))
    assert found(root) == (("a", "b"), 18, 6)
    assert any("tested on test/; val/ not used" in note for note in list_folder(root).notes)


@pytest.mark.parametrize("unlabelled", [(), ("test/0.png",)])
def test_train_alone_holds_a_fifth_out(put, unlabelled):
    root = put(*images("train"), *unlabelled)
    assert found(root) == (("a", "b"), 16, 2)
    assert any("every fifth image is held out" in note for note in list_folder(root).notes)


def test_a_split_may_lack_a_class_and_it_is_said(put):
    root = put(*images("train"), *images("test", classes="a", count=4))
    assert found(root) == (("a", "b"), 18, 4)
    assert any("no images of b/ to test on" in note for note in list_folder(root).notes)


def test_classes_that_are_named_like_splits(put):
    """Images directly in train/ make it a class, where there are classes that are no splits."""
    root = put(*images("", classes=("train", "bus")))
    assert found(root) == (("bus", "train"), 16, 2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (images("Train", "train", "test"), "found Train/, train/; want one of them"),
        (images("train", "training", "test"), "found train/, training/; want one of them"),
        (images("train", "test", "Test"), "found Test/, test/; want one of them"),
        (images("test", "val"), "found test/, val/; want a folder train"),
        (images("train", "holdout"), "found train/ and holdout/; want beside the first"),
        (["train/0.png", "test/0.png"], "test/, train/ hold images, but no class folders"),
        (["train/0.png"], "train/ hold images, but no class folders"),
        (["train/a/0.png", "test/a/0.png"], "found 1 class folders"),
        (["0.png", "1.png"], "found 0 class folders"),
        ([*images("train"), "val/dog/0.png"], r"classes \['dog'\] are not in"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_right_is_refused(put, names, message):
    with pytest.raises(UserError, match=message):
        list_folder(put(*names))


def test_a_split_of_unknown_classes_gives_way_to_the_next(put):
    root = put(*images("train", "val"), "test/unknown/0.png")
    assert found(root) == (("a", "b"), 18, 18)
    assert any("['unknown'] are not in" in note for note in list_folder(root).notes)


@pytest.mark.parametrize(
    "leftover",
    [
        ".ipynb_checkpoints/1-checkpoint.png", "a/.ipynb_checkpoints/1-checkpoint.png",
        "__MACOSX/a/1.png", "a/__MACOSX/1.png", "a/@eaDir/1.png", ".Trash/1.png", "a/.hidden.png",
        "a/._1.png",
    ],
)  # fmt: skip
def test_what_programs_leave_behind_is_no_class_and_no_image(put, leftover):
    root = put(*images(""), leftover)
    (root / "a" / "._2.png").write_bytes(b"\0\5\x16\7" + b"\0" * 100)  # macOS's, beside 2.png
    assert found(root) == (("a", "b"), 16, 2)
    assert list_folder(root).notes == [f"{root}: every fifth image is held out to test on"]


def test_what_is_left_out_is_said(put):
    root = put(*images(""), "stray.png")
    (root / "a" / "notes.txt").write_text("x")
    (root / "b" / "raw.heic").write_text("x")
    (root / "c").mkdir()
    put("few/0.png")
    notes = " ".join(list_folder(root).notes)
    assert "no images in c/, so no class" in notes
    assert "images in no class folder, not used: 1" in notes
    assert "files that are no images by their names: 2 (.txt 1, .heic 1)" in notes
    assert "fewer than 5 images of few/, none to test on" in notes


def test_folders_beside_the_splits_are_said(put):
    root = put(*images("train", "test"), "samples/0.png", "docs/figures/0.png")
    assert found(root) == (("a", "b"), 18, 18)
    assert any("docs/, samples/ not used" in note for note in list_folder(root).notes)


def test_links_are_followed(put, tmp_path):
    put(*images("set"), "elsewhere/9.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "set/a/more")
    assert found(tmp_path / "set") == (("a", "b"), 17, 2)


def test_a_class_and_the_root_may_be_links(put, tmp_path):
    put(*images("store"))
    (tmp_path / "set").mkdir()
    for name in "ab":
        os.symlink(tmp_path / "store" / name, tmp_path / "set" / name)
    os.symlink(tmp_path / "set", tmp_path / "link")
    assert found(tmp_path / "link") == (("a", "b"), 16, 2)


@pytest.mark.parametrize("target", [".", "sub"])
def test_a_circle_of_links_and_a_folder_that_two_lead_to_come_once(put, tmp_path, target):
    put(*images(""), "a/sub/9.png")
    os.symlink(tmp_path / "a" / target, tmp_path / "a/again")
    listing = list_folder(tmp_path)
    assert len(listing.train["a"] + listing.test["a"]) == 10


def test_a_link_into_another_class_is_refused(put, tmp_path):
    put(*images(""))
    os.symlink(tmp_path / "b", tmp_path / "a/more")
    with pytest.raises(UserError, match="in the classes 'a' and 'b', through a link"):
        list_folder(tmp_path)


def test_a_link_from_test_to_train_is_said(put, tmp_path):
    put(*images("train"))
    os.symlink(tmp_path / "train", tmp_path / "test")
    assert found(tmp_path) == (("a", "b"), 18, 18)
    assert any("both trained and tested on" in note for note in list_folder(tmp_path).notes)


def test_another_folder_does_not_move_the_split_of_the_others():
    flat = [Path(f"a/{i}.png") for i in range(9)]
    more = [Path(f"a/more/{i}.png") for i in range(7)]
    _, before = hold_out(flat)
    train, after = hold_out(flat + more)
    assert before == [Path("a/4.png")]
    assert after == [*before, Path("a/more/4.png")]
    assert sorted(train + after) == sorted(flat + more)


def test_folders_of_few_images_are_taken_together():
    files = [Path(f"a/person {i}/{j}.png") for i in range(10) for j in range(2)]
    train, test = hold_out(files)
    assert (len(train), len(test)) == (16, 4)


def test_a_folder_that_cannot_be_listed_is_named(put, monkeypatch):
    root, scandir = put(*images("")), os.scandir

    def refuse(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"b: cannot be listed \(Permission denied\)"):
        list_folder(root)


def test_names_that_are_no_text(put, tmp_path):
    put(*images(""))
    os.rename(os.fsencode(tmp_path / "a" / "0.png"), os.fsencode(tmp_path / "a") + b"/\xff.png")
    assert found(tmp_path) == (("a", "b"), 16, 2)
