"""CIFAR-10's python version: pickles, of which nothing is run."""

import codecs
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from errors import UserError, reason

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
TRAIN = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
TEST = "test_batch"


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """What protocol 5 makes an array of."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads what a batch holds (dicts, bytes, numbers, arrays), by any protocol, and no more."""

    allowed: ClassVar = {
        ("multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
        ("multiarray", "scalar"): np._core.multiarray.scalar,
        ("numeric", "_frombuffer"): _from_buffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
        ("builtins", "bytes"): bytes,
        ("builtins", "bytearray"): bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        for core in ("numpy.core.", "numpy._core."):  # before NumPy 2 and from it on
            module = module.removeprefix(core)
        module = {"__builtin__": "builtins"}.get(module, module)
        try:
            return self.allowed[module, name]
        except KeyError:
            message = f"holds {module}.{name}, which no data batch needs"
            raise pickle.UnpicklingError(message) from None


def find(root: Path) -> Path:
    """The folder of the batches: root, or cifar-10-batches-py in it."""
    if (root / "cifar-10-batches-py").is_dir():
        root = root / "cifar-10-batches-py"
    missing = [name for name in (*TRAIN, TEST) if not (root / name).is_file()]
    if missing:
        raise UserError(
            f"--data {root}: no file {', '.join(missing)}. Want the unpacked "
            "cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html), the folder "
            "cifar-10-batches-py."
        )
    return root


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of one file."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="bytes").load()
        # Python 2 wrote the keys as bytes; who pickles anew often writes text.
        batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in batch.items()}
        images = whole_numbers("data", batch["data"], 255)
        labels = whole_numbers("labels", batch["labels"], 9)
        if images.shape[1:] not in ((3072,), (3, 32, 32)) or labels.shape != images.shape[:1]:
            raise ValueError(
                f"data of shape {images.shape} and labels of shape {labels.shape}; want (N, 3072) "
                "and (N,)"
            )
        if len(labels) == 0:
            raise ValueError("no image")
    except Exception as error:  # A damaged pickle raises nearly anything.
        raise UserError(
            f"{path}: not a batch of CIFAR-10's python version ({reason(error)}). "
            "Unpack the archive again; its md5 is c58f30108f718f92721af3b95e74349a."
        ) from error
    return images.reshape(-1, 3, 32, 32).astype(np.uint8), labels.astype(np.int64)


def whole_numbers(name: str, values: Any, most: int) -> np.ndarray:
    """An array of numbers from 0 to most, whatever their type."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} of type {array.dtype}; want whole numbers")
    if array.size and not (array.min() >= 0 and array.max() <= most):  # nan is neither
        raise ValueError(f"{name} from {array.min()} to {array.max()}; want 0 to {most}")
    if array.dtype.kind == "f" and not (array == array.round()).all():
        raise ValueError(f"{name} with fractions; want whole numbers from 0 to {most}")
    return array
