"""Fashion-MNIST's four IDX files, as they are published or unpacked."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import UserError, reason

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
SIDE = 28
# An IDX file begins with two zero bytes, 8 for unsigned bytes, and its number of dimensions.
IMAGES_MAGIC, LABELS_MAGIC = 0x00000803, 0x00000801
# Beyond any file of this kind: a damaged header must not ask for a machine's memory.
MOST_IMAGES = 1_000_000


class Split(NamedTuple):
    """The files of one half, by their names without .gz."""

    images: str
    labels: str


TRAIN = Split("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = Split("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def find(root: Path) -> Path:
    """The folder of the four files: root, or where torchvision puts them below it."""
    if not root.is_dir():
        raise UserError(f"--data {root}: no such folder. Want that of Fashion-MNIST's four files.")
    names = [*TRAIN, *TEST]
    places = [root, root / "raw", root / "FashionMNIST" / "raw"]
    folder = max(places, key=lambda place: sum(present(place, name) is not None for name in names))
    missing = [name for name in names if present(folder, name) is None]
    if missing:
        raise UserError(
            f"--data {folder}: no file {', '.join(missing)}, with .gz or without. Want the four "
            "files of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist; in Debian "
            "the package dataset-fashion-mnist)."
        )
    return folder


def present(folder: Path, name: str) -> Path | None:
    """The unpacked file before the compressed one."""
    files = (folder / name, folder / f"{name}.gz")
    return next((file for file in files if file.is_file()), None)


def read_split(folder: Path, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels int64 [N]."""
    paths = [present(folder, name) for name in split]
    assert paths[0] is not None  # find() saw to it
    assert paths[1] is not None
    images = read_idx(paths[0], IMAGES_MAGIC, (SIDE, SIDE))
    labels = read_idx(paths[1], LABELS_MAGIC, ())
    if len(images) != len(labels):
        raise UserError(
            f"{paths[0]}: {len(images)} images, but {len(labels)} labels in {paths[1].name}; want "
            "as many. The files are of different sets: fetch all four again."
        )
    if labels.max() >= len(CLASSES):
        raise UserError(
            f"{paths[1]}: a label of {labels.max()}; want 0 to {len(CLASSES) - 1}, those of "
            "Fashion-MNIST"
        )
    return images, labels.astype(np.int64)


def read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unsigned bytes [N, *shape], all that the file holds."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 * (2 + len(shape)))
            found, *sizes = np.frombuffer(header[: len(header) // 4 * 4], ">u4").tolist() or [None]
            if found is None or (found == magic and len(sizes) < 1 + len(shape)):
                raise ValueError(f"it ends after {len(header)} bytes")
            if found != magic:
                raise ValueError(f"it begins with 0x{found:08x}; want 0x{magic:08x}")
            if tuple(sizes[1:]) != shape:
                got, want = (" x ".join(map(str, pixels)) for pixels in (sizes[1:], shape))
                raise ValueError(f"images of {got}; want {want}")
            if not 1 <= sizes[0] <= MOST_IMAGES:
                raise ValueError(f"it counts {sizes[0]} items; want 1 to {MOST_IMAGES}")
            size = int(np.prod(sizes))
            content = file.read(size + 1)
            if len(content) < size:
                raise ValueError(f"it ends after {len(content)} of {size} bytes")
            if len(content) > size:
                raise ValueError(f"it goes on after the {size} bytes that its header counts")
    except Exception as error:  # A damaged gzip raises one of several.
        raise UserError(
            f"{path}: not a file of Fashion-MNIST ({reason(error)}). Fetch it again."
        ) from error
    return np.frombuffer(content, np.uint8).reshape(sizes)
