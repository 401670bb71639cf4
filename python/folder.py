"""Folders of images as people have them: classes, splits, and what beside them is no image."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from errors import UserError, reason

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png",
    ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
# In any case of letters; of those to test on, the first that serves.
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
# What systems and programs leave behind, beside names that begin with a dot.
LEFTOVERS = {"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"}

Classes = dict[str, list[Path]]  # class name -> its image files, both sorted


@dataclass
class Listing:
    """What to train and to test on, and what was passed over on the way there."""

    train: Classes
    test: Classes
    notes: list[str]


@dataclass
class Tree:
    """A folder and all below it, links followed."""

    root: Path
    classes: Classes = field(default_factory=dict)
    beside: list[Path] = field(default_factory=list)  # images in no folder of a class
    empty: list[str] = field(default_factory=list)  # folders without images
    other: Counter[str] = field(default_factory=Counter)  # files that are no images, by suffix
    folders: dict[Path, str] = field(default_factory=dict)  # real folder -> its class

    @classmethod
    def read(cls, root: Path) -> "Tree":
        tree = cls(root)
        folders, tree.beside = tree.visible(root)
        for folder in folders:
            files = sorted(tree.below(folder, folder.name))
            if files:
                tree.classes[folder.name] = files
            else:
                tree.empty.append(folder.name)
        return tree

    def visible(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the image files directly in a folder, sorted."""
        try:
            with os.scandir(folder) as entries:
                shown = sorted(
                    (e.name, e.is_dir())
                    for e in entries
                    if not e.name.startswith(".") and e.name.lower() not in LEFTOVERS
                )
        except OSError as error:
            raise UserError(f"{folder}: cannot be listed ({reason(error)})") from error
        files = [folder / name for name, is_folder in shown if not is_folder]
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self.other.update(f.suffix.lower() or f.name for f in files if f not in set(images))
        return [folder / name for name, is_folder in shown if is_folder], images

    def below(self, folder: Path, label: str) -> list[Path]:
        """Every image of a class. A folder that links lead to twice, or in a circle, comes once."""
        real = Path(os.path.realpath(folder))
        owner = self.folders.get(real)
        if owner == label:
            return []
        if owner is not None:
            raise UserError(f"{real}: in the classes {owner!r} and {label!r}, through a link")
        self.folders[real] = label
        folders, images = self.visible(folder)
        for inner in folders:
            images += self.below(inner, label)
        return images

    def notes(self) -> list[str]:
        notes = []
        if self.empty:
            notes.append(f"{self.root}: no images in {names(self.empty)}, so no class")
        if self.beside:
            notes.append(f"{self.root}: images in no class folder, not used: {len(self.beside)}")
        if self.other:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.other.most_common(4))
            notes.append(
                f"{self.root}: files that are no images by their names: {self.other.total()} "
                f"({kinds})"
            )
        return notes


def list_folder(root: Path) -> Listing:
    """root/train/CLASS/* and root/test/CLASS/*, by the names above; or root/CLASS/*.

    Without images to test on, a fifth is held out.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder. Want a folder with one folder per class.")
    folders, _ = Tree(root).visible(root)
    splits = {f.name: Tree.read(f) for f in folders if is_split(f.name)}
    beside = [f.name for f in folders if not is_split(f.name) and Tree(f).below(f, f.name)]
    if any(split.classes for split in splits.values()):
        return _with_splits(root, splits, beside)
    unlabelled = [name for name, split in splits.items() if split.beside]
    if unlabelled and not beside:
        raise UserError(
            f"--data {root}: {names(unlabelled)} hold images, but no class folders. Want one "
            "folder per class in each."
        )
    whole = Tree.read(root)
    _want_two_classes(whole)
    return _held_out(whole, whole.notes())


def _with_splits(root: Path, splits: dict[str, Tree], beside: list[str]) -> Listing:
    """Beside: further folders that hold images."""
    train_names = [name for name in splits if name.lower() in TRAIN_NAMES]
    if len(train_names) != 1:
        found = names(train_names or splits)
        want = "one of them" if train_names else "a folder train with the same classes beside them"
        raise UserError(f"--data {root}: found {found}; want {want}")
    train = splits[train_names[0]]
    _want_two_classes(train)
    notes = train.notes()

    def rank(name: str) -> int:
        return TEST_NAMES.index(name.lower())

    ranked = sorted(sorted(splits.keys() - set(train_names)), key=rank)
    for one, other in pairwise(ranked):
        if rank(one) == rank(other):
            raise UserError(f"--data {root}: found {names([one, other])}; want one of them")
    if beside and not ranked:
        raise UserError(
            f"--data {root}: found {names(train_names)} and {names(beside)}; want beside the first "
            "a folder test or val with the same classes, or else every class in one folder"
        )
    if beside:
        notes.append(f"{root}: {names(beside)} not used")
    unknown = []
    for place, name in enumerate(ranked, 1):
        test = splits[name]
        more = sorted(test.classes.keys() - train.classes.keys())
        if more:
            unknown.append(f"{test.root}: classes {more} are not in {train.root}")
        elif not test.classes:
            found = "images without class folders" if test.beside else "no images"
            notes.append(f"{test.root}: {found}, not used")
        else:
            notes += [f"{message}; not used" for message in unknown] + test.notes()
            if ranked[place:]:
                notes.append(f"{root}: tested on {name}/; {names(ranked[place:])} not used")
            lacking = sorted(train.classes.keys() - test.classes.keys())
            if lacking:
                notes.append(f"{test.root}: no images of {names(lacking)} to test on")
            shared = sorted(train.folders.keys() & test.folders.keys())
            if shared:
                notes.append(f"{shared[0]}: through a link, both trained and tested on")
            return Listing(train.classes, test.classes, notes)
    if unknown:
        raise UserError("; ".join(unknown))
    return _held_out(train, notes)


def _held_out(tree: Tree, notes: list[str]) -> Listing:
    parts = {name: hold_out(files) for name, files in tree.classes.items()}
    lacking = [name for name, (_, test) in parts.items() if not test]
    if len(lacking) == len(parts):
        raise UserError(
            f"--data {tree.root}: every class has fewer than 5 images, so none can be held out for "
            "testing. Add images, or make the folders train/ and test/ yourself."
        )
    if lacking:
        notes = [*notes, f"{tree.root}: fewer than 5 images of {names(lacking)}, none to test on"]
    return Listing(
        {name: train for name, (train, _) in parts.items()},
        {name: test for name, (_, test) in parts.items()},
        [*notes, f"{tree.root}: every fifth image is held out to test on"],
    )


def hold_out(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """Every fifth image of each folder is for testing; folders of fewer are taken together.

    The split depends on names alone, and another folder does not move that of those there were.
    """
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    small = [file for inside in folders.values() if len(inside) < 5 for file in inside]
    held = {file for inside in folders.values() if len(inside) >= 5 for file in inside[4::5]}
    held.update(small[4::5])
    return [f for f in files if f not in held], [f for f in files if f in held]


def _want_two_classes(tree: Tree) -> None:
    if len(tree.classes) < 2:
        raise UserError(
            f"{tree.root}: found {len(tree.classes)} class folders with images; want at least 2, "
            f"each holding files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )


def is_split(name: str) -> bool:
    return name.lower() in TRAIN_NAMES + TEST_NAMES


def names(some: Iterable[str]) -> str:
    """At most four of them."""
    listed = list(some)
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(f"{name}/" for name in listed[:4]) + more
