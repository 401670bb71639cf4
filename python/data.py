"""Data sets, held in memory as uint8 images with one-hot or multi-hot labels."""

import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import cifar
import fashion
from errors import UserError, reason
from folder import Classes, list_folder, names
from image import read_square
from scenes import compose_scenes, digits

SKIPS_SHOWN = 20


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [N, C, H, W]; labels float32 [N, classes], one-hot or (scenes) multi-hot."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    multi_label: bool
    notes: tuple[str, ...] = ()  # what was left out of a folder, to be said

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[2]

    @property
    def colour(self) -> bool:
        return self.channels == 3

    @cached_property
    def mean(self) -> Tensor:
        """Per channel, of the training images in [0, 1]: [C]."""
        # The exact histogram costs no float copy of the images.
        values = torch.linspace(0, 1, 256, dtype=torch.float64)
        return (self._histogram @ values).float()

    @cached_property
    def std(self) -> Tensor:
        values = torch.linspace(0, 1, 256, dtype=torch.float64)
        variance = self._histogram @ values.square() - (self._histogram @ values).square()
        return variance.clamp(min=1e-6).sqrt().float()

    @cached_property
    def _histogram(self) -> Tensor:
        counts = [torch.bincount(c.reshape(-1), minlength=256) for c in self.train_images.unbind(1)]
        return torch.stack(counts).double() / counts[0].sum()

    @cached_property
    def fingerprint(self) -> list[int]:
        """Equal for equal training images, so that a run does not go on with others."""
        return [*self.train_images.shape, zlib.crc32(self.train_images.contiguous().numpy())]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 -> float32 with zero mean and unit std per channel, as the encoder wants them."""
        shape = (1, -1, 1, 1)
        mean, std = (s.to(images.device).view(shape) for s in (self.mean, self.std))
        return (to_float(images) - mean) / std


def to_float(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def load_scenes(train: int, test: int, seed: int, size: int = 48) -> ImageData:
    """Scenes of nine small digits of one to three kinds, with noise. The labels are the kinds.

    LoGo's premise holds here, as it does not on single digits: two local crops of one scene may
    show different things. No handwriting appears on both sides.
    """
    glyphs, kinds, held_out = digits()
    parts = []
    for count, part, part_seed in ((train, ~held_out, 2 * seed), (test, held_out, 2 * seed + 1)):
        generator = torch.Generator().manual_seed(part_seed)
        parts += compose_scenes(glyphs[part], kinds[part], count, size, generator)
    return ImageData(*parts, classes=tuple("0123456789"), multi_label=True)


def load_cifar10(root: Path) -> ImageData:
    """The "python version" folder: cifar-10-batches-py, or the folder that holds it."""
    root = cifar.find(root)
    train = [cifar.read_batch(root / name) for name in cifar.TRAIN]
    parts = []
    for batches in (train, [cifar.read_batch(root / cifar.TEST)]):
        images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
        parts += [torch.from_numpy(images), F.one_hot(torch.from_numpy(labels), 10).float()]
    return ImageData(*parts, classes=cifar.CLASSES, multi_label=False)


def load_fashion(root: Path) -> ImageData:
    """Fashion-MNIST as it is: garments of 28 x 28, one to an image."""
    parts = []
    for images, labels in _garments(root):
        parts += [images[:, None], F.one_hot(labels, len(fashion.CLASSES)).float()]
    return ImageData(*parts, classes=fashion.CLASSES, multi_label=False)


def load_fashion_scenes(root: Path, train: int, test: int, seed: int, size: int = 84) -> ImageData:
    """Scenes of nine garments of one to three kinds, composed as those of digits are.

    No garment appears on both sides: each side is composed of its own file's.
    """
    parts = []
    for count, part_seed, (garments, kinds) in zip(
        (train, test), (2 * seed, 2 * seed + 1), _garments(root), strict=True
    ):
        generator = torch.Generator().manual_seed(part_seed)
        parts += compose_scenes(to_float(garments), kinds, count, size, generator)
    return ImageData(*parts, classes=fashion.CLASSES, multi_label=True)


def _garments(root: Path) -> list[tuple[Tensor, Tensor]]:
    """uint8 [N, 28, 28] and int64 [N], to train and to test on."""
    root = fashion.find(root)
    pairs = [fashion.read_split(root, split) for split in (fashion.TRAIN, fashion.TEST)]
    return [(torch.tensor(images), torch.from_numpy(labels)) for images, labels in pairs]


def load_folder(root: Path, size: int, skip_unreadable: bool = False) -> ImageData:
    """root/train/CLASS/* and root/test (or val)/CLASS/*; or root/CLASS/*, a fifth held out.

    Images are scaled to `size` pixels on the short side, cropped at the centre, and kept in memory.
    """
    listing = list_folder(root)
    classes = tuple(sorted(listing.train))
    skipped: list[str] | None = [] if skip_unreadable else None
    parts = [
        part
        for files in (listing.train, listing.test)
        for part in _read_images(files, classes, size, skipped)
    ]
    notes = listing.notes
    if skipped:
        notes += [f"skipped {len(skipped)} images that cannot be read:", *skipped[:SKIPS_SHOWN]]
        if len(skipped) > SKIPS_SHOWN:
            notes.append(f"... and {len(skipped) - SKIPS_SHOWN} more")
        _, train_labels, _, test_labels = parts
        lost = [name for name, n in zip(classes, train_labels.sum(0), strict=True) if n == 0]
        if lost or len(test_labels) == 0:
            where = f"to train on of {names(lost)}" if lost else "to test on"
            raise UserError(f"--data {root}: no readable image {where} ({skipped[0]})")
    return ImageData(*parts, classes=classes, multi_label=False, notes=tuple(notes))


def _read_images(
    files: Classes, classes: tuple[str, ...], size: int, skipped: list[str] | None = None
) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, size, size] and one-hot [N, classes].

    What cannot be read is an error, or, where there is a list for it, left out and listed.
    """
    pairs = [(file, classes.index(name)) for name in classes for file in files.get(name, [])]
    images = torch.empty(len(pairs), 3, size, size, dtype=torch.uint8)
    labels = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on what it reads all the same
        for file, label in tqdm(pairs, desc="reading images", unit="", disable=None):
            try:
                if not file.is_file():
                    raise ValueError("a link to nothing" if file.is_symlink() else "no plain file")
                pixels = read_square(file, size)
            except Exception as error:
                message = f"{file}: cannot be read as an image ({reason(error)})"
                if skipped is None:
                    raise UserError(
                        f"{message}. Mend or remove it, or leave such images out by "
                        "--skip-unreadable."
                    ) from error
                skipped.append(message)
            else:
                images[len(labels)] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
                labels.append(label)
    one_hot = F.one_hot(torch.tensor(labels, dtype=torch.int64), len(classes)).float()
    return images[: len(labels)], one_hot
