"""Data sets, held in memory as uint8 images with one-hot or multi-hot labels."""

import codecs
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from errors import UserError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [N, C, H, W]; labels float32 [N, classes], one-hot or (scenes) multi-hot."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    multi_label: bool

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

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 -> float32 with zero mean and unit std per channel, as the encoder wants them."""
        shape = (1, -1, 1, 1)
        mean, std = (s.to(images.device).view(shape) for s in (self.mean, self.std))
        return (to_float(images) - mean) / std


def to_float(images: Tensor) -> Tensor:
    """uint8 0 ... 255 -> float32 in [0, 1]."""
    return images.to(torch.float32) / 255


# --------------------------------------------------------------------------------------------------
# scenes


def load_scenes(train: int, test: int, seed: int, size: int = 48) -> ImageData:
    """Scenes of nine small digits of one to three kinds, with noise. The labels are the kinds.

    LoGo's premise holds here, as it does not on single digits: two local crops of one scene may
    show different things. The digits are scikit-learn's 1,797 of 8 x 8 pixels. Every fourth is
    kept for the test scenes, so that no handwriting appears on both sides.
    """
    digits = load_digits()
    glyphs = torch.from_numpy(digits.images).float() / 16  # [1797, 8, 8] in [0, 1]
    glyph_labels = torch.from_numpy(digits.target).long()
    held_out = torch.arange(len(glyphs)) % 4 == 3
    parts = []
    for count, part, part_seed in ((train, ~held_out, 2 * seed), (test, held_out, 2 * seed + 1)):
        generator = torch.Generator().manual_seed(part_seed)
        parts += compose_scenes(glyphs[part], glyph_labels[part], count, size, generator)
    return ImageData(*parts, classes=tuple("0123456789"), multi_label=True)


def compose_scenes(
    glyphs: Tensor, labels: Tensor, count: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Glyphs [M, 8, 8], labels [M] -> uint8 [count, 1, size, size], multi-hot [count, 10].

    A kind comes several times in different hands: what two crops share is the kind, not the pixels.
    Digits fill the scene (3 x 3, each shifted by up to half a cell), because in a sparse scene the
    places of the digits give the image away: SimSiam then learns the layout, and its loss falls
    while kNN does not rise.
    """
    cell = size / 3
    sides = range(round(0.8 * cell), round(1.15 * cell) + 1)
    resized = {s: F.interpolate(glyphs[:, None], (s, s), mode="bilinear")[:, 0] for s in sides}
    members = [torch.nonzero(labels == kind).flatten().tolist() for kind in range(10)]
    images = torch.empty(count, 1, size, size, dtype=torch.uint8)
    targets = torch.zeros(count, 10)
    for n in range(count):
        number = int(torch.randint(1, 4, (), generator=generator))
        kinds = torch.randperm(10, generator=generator)[:number].tolist()
        targets[n, kinds] = 1
        scene = torch.zeros(size, size)
        places = torch.randperm(9, generator=generator).tolist()
        draws = torch.rand(9, 4, generator=generator).tolist()
        for i, (place, draw) in enumerate(zip(places, draws, strict=True)):
            side = sides[int(draw[0] * len(sides))]
            hands = members[kinds[i % number]]
            glyph = resized[side][hands[int(draw[1] * len(hands))]]
            top, left = (
                min(max(round((at + shift) * cell - side / 2), 0), size - side)
                for at, shift in zip(divmod(place, 3), draw[2:], strict=True)
            )
            patch = scene[top : top + side, left : left + side]
            torch.maximum(patch, glyph, out=patch)
        noise = 0.1 * torch.randn(size, size, generator=generator)
        images[n, 0] = ((0.05 + 0.8 * scene + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return images, targets


# --------------------------------------------------------------------------------------------------
# CIFAR-10


CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Reads what CIFAR-10's python version holds (dicts, bytes, arrays) and runs nothing else."""

    allowed: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            message = f"holds {module}.{name}, which no data batch needs"
            raise pickle.UnpicklingError(message) from None


def load_cifar10(root: Path) -> ImageData:
    """The "python version" folder: cifar-10-batches-py, or the folder that holds it."""
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
    missing = [name for name in [*names, "test_batch"] if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"--data {root}: no file {', '.join(missing)}. Want the unpacked "
            "cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html), the folder "
            "cifar-10-batches-py."
        )
    batches = [_cifar_batch(root / name) for name in names]
    test_images, test_labels = _cifar_batch(root / "test_batch")
    return ImageData(
        torch.cat([images for images, _ in batches]),
        torch.cat([labels for _, labels in batches]),
        test_images,
        test_labels,
        classes=CIFAR10_CLASSES,
        multi_label=False,
    )


def _cifar_batch(path: Path) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, 32, 32] and one-hot [N, 10] of one batch file."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        images = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.tensor(batch[b"labels"])
        if len(images) != len(labels) or labels.min() < 0 or labels.max() > 9:
            raise ValueError(f"{len(images)} images, {len(labels)} labels from 0 to 9 do not fit")
    except Exception as error:  # A damaged pickle raises nearly anything.
        raise UserError(
            f"{path}: not a batch of CIFAR-10's python version ({type(error).__name__}: {error}). "
            "Unpack the archive again; its md5 is c58f30108f718f92721af3b95e74349a."
        ) from error
    return torch.from_numpy(images.copy()), F.one_hot(labels, 10).float()


# --------------------------------------------------------------------------------------------------
# A folder of class folders


def load_folder(root: Path, size: int) -> ImageData:
    """root/train/CLASS/* and root/test (or val)/CLASS/*; or root/CLASS/*, a fifth held out.

    Images are scaled to `size` pixels on the short side, cropped at the centre, and kept in memory.
    """
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder. Want a folder with one folder per class.")
    test_root = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test_root is not None:
        train, test = _list_classes(root / "train"), _list_classes(test_root)
        if set(test) - set(train):
            raise UserError(
                f"{test_root}: classes {sorted(set(test) - set(train))} are not in {root / 'train'}"
            )
    else:
        listed = _list_classes(root)
        # Sorted names and a fixed stride: the split depends on nothing but the files.
        train = {name: [f for i, f in enumerate(fs) if i % 5 != 4] for name, fs in listed.items()}
        test = {name: fs[4::5] for name, fs in listed.items()}
        if not any(test.values()):
            raise UserError(
                f"--data {root}: every class has fewer than 5 images, so none can be held out for "
                "testing. Add images, or make the folders train/ and test/ yourself."
            )
    classes = tuple(sorted(train))
    parts = [*_read_images(train, classes, size), *_read_images(test, classes, size)]
    return ImageData(*parts, classes=classes, multi_label=False)


def _list_classes(root: Path) -> dict[str, list[Path]]:
    """Class name -> its image files, both sorted."""
    found = {
        folder.name: sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if len(found) < 2:
        raise UserError(
            f"{root}: found {len(found)} class folders with images; want at least 2, each holding "
            f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def _read_images(
    files: dict[str, list[Path]], classes: tuple[str, ...], size: int
) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, size, size] and one-hot [N, classes]."""
    pairs = [(file, classes.index(name)) for name in classes for file in files.get(name, [])]
    images = torch.empty(len(pairs), 3, size, size, dtype=torch.uint8)
    for i, (file, _) in enumerate(tqdm(pairs, desc="reading images", unit="", disable=None)):
        try:
            with Image.open(file) as image:
                image = image.convert("RGB")
                width, height = image.size
                side = min(width, height)
                left, top = (width - side) // 2, (height - side) // 2
                image = image.resize(
                    (size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
                )
        except (UnidentifiedImageError, OSError, ValueError) as error:
            raise UserError(
                f"{file}: cannot be read as an image ({error}). Mend or remove it."
            ) from error
        images[i] = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    return images, F.one_hot(torch.tensor([c for _, c in pairs]), len(classes)).float()
